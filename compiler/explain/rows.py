"""The result of an explanation: a row per product and variant, totals per phase, and layers that are alike grouped."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmmprune.compiler.explain.kernels import Kind
from lmmprune.compiler.explain.profile_ort import Times
from lmmprune.compiler.explain.reasons import remark, why_float

if TYPE_CHECKING:  # these need onnx-ir, which the run-time's install doesn't have
    from lmmprune.compiler.explain.layers import Product
    from lmmprune.compiler.explain.match import Kernel

# What a bundle does, and which graph does it.
PHASES: Mapping[str, str] = {
    "vision": "vision",
    "selection": "selection",
    "prefill": "decoder",
    "decode": "decoder",
}


@dataclass(frozen=True, kw_only=True)
class KernelRow:
    """One product in one variant.

    Attributes:
        graph: ``vision``, ``selection`` or ``decoder``.
        layer: Number of the transformer layer, None outside of them.
        role: The part it plays there.
        key: What it is called in every variant: the name of its weight, or of its node.
        kernel: Operator that ran, None if none could be told to be it.
        kind: Whether it multiplied integers, None without a kernel.
        ms: Phase -> median milliseconds of the kernel.
        dequantize_ms: Phase -> of the nodes that expand its weight or its activation for it alone.
        reason: Why it is floating point, None if it is integer.
        reason_name: The reason in two words.
        remark: What slows an integer kernel down, if anything.
    """

    graph: str
    layer: int | None
    role: str
    key: str
    kernel: str | None
    kind: Kind | None
    ms: Mapping[str, float]
    dequantize_ms: Mapping[str, float]
    reason: str | None
    reason_name: str | None
    remark: str | None


@dataclass(frozen=True, kw_only=True)
class PhaseTotal:
    """One phase of one variant: milliseconds of all nodes, of products with a weight, and of those in integers."""

    total_ms: float
    weights_ms: float
    integer_ms: float
    quantizing_ms: float

    @property
    def integer_share(self) -> float:
        """Part of the weights' time that integer kernels take, 0..1."""
        return self.integer_ms / self.weights_ms if self.weights_ms else 0.0


@dataclass(frozen=True, kw_only=True)
class VariantKernels:
    """One variant."""

    name: str
    rows: tuple[KernelRow, ...]
    phases: Mapping[str, PhaseTotal]


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """All variants, the first of them being what the others are compared with."""

    rounds: int
    variants: tuple[VariantKernels, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the explanation for JSON."""
        raw = dataclasses.asdict(self)
        for variant, found in zip(raw["variants"], self.variants, strict=True):
            for phase, total in found.phases.items():
                variant["phases"][phase]["integer_share"] = total.integer_share
        return raw


@dataclass(frozen=True, kw_only=True)
class Group:
    """Neighbouring layers in which a role is computed alike, with the sums of their times, a row per variant."""

    graph: str
    role: str
    layers: tuple[int, ...]
    count: int
    variants: tuple[KernelRow | None, ...]

    @property
    def name(self) -> str:
        """``vision 0-4 qkv``."""
        first, last = (self.layers[0], self.layers[-1]) if self.layers else (None, None)
        span = "" if first is None else f" {first}" if first == last else f" {first}-{last}"
        return f"{self.graph}{span} {self.role}"


def make_row(
    graph: str, layer: Product, kernel: Kernel | None, times: Mapping[str, Times], *, quantized: bool
) -> KernelRow:
    """Return the row of a product from its kernel and the times of every node (``quantized``: see ``why_float``)."""
    reason, note = why_float(layer, kernel, quantized=quantized), remark(layer, kernel)
    around = () if kernel is None else kernel.dequantizers
    return KernelRow(
        graph=graph,
        layer=layer.layer,
        role=layer.role,
        key=layer.key,
        kernel=None if kernel is None else kernel.op,
        kind=None if kernel is None else kernel.kind,
        ms={} if kernel is None else {phase: found.nodes.get(kernel.node, 0.0) for phase, found in times.items()},
        dequantize_ms={phase: sum(found.nodes.get(name, 0.0) for name in around) for phase, found in times.items()},
        reason=None if reason is None else reason.text,
        reason_name=None if reason is None else reason.name,
        remark=None if note is None else note.text,
    )


_WITHOUT_WEIGHT = {"attention", "score", "other"}


def phase_total(rows: Sequence[KernelRow], phase: str, times: Times) -> PhaseTotal:
    """Sum one phase over the rows of its graph."""
    weights = [row for row in rows if row.graph == PHASES[phase] and row.role not in _WITHOUT_WEIGHT]
    return PhaseTotal(
        total_ms=times.total,
        weights_ms=sum(row.ms.get(phase, 0.0) for row in weights),
        integer_ms=sum(row.ms.get(phase, 0.0) for row in weights if row.kind == "integer"),
        quantizing_ms=times.quantizing,
    )


def group_rows(variants: Sequence[VariantKernels]) -> list[Group]:
    """Put together what is computed alike in consecutive layers, in every variant; times are summed."""
    tables = [{(row.graph, row.key): row for row in variant.rows} for variant in variants]
    keys = list(dict.fromkeys(key for table in tables for key in table))
    order: dict[tuple[str, str], int] = {}
    found = []
    for key in keys:
        across = tuple(table.get(key) for table in tables)
        row = next(row for row in across if row is not None)
        place = order.setdefault((row.graph, row.role), len(order))
        looks = tuple(None if r is None else (r.kernel, r.reason_name) for r in across)
        found.append((place, row.layer if row.layer is not None else -1, repr(looks), across))
    # A role with two looks in one layer gives two groups that run side by side.
    found.sort(key=lambda entry: (entry[0], entry[2], entry[1]))
    groups = []
    for _, entries in itertools.groupby(found, key=lambda entry: (entry[0], entry[2])):
        for run in _consecutive([(layer, across) for _, layer, _, across in entries]):
            groups.append(_group(run))
    return groups


Across = tuple["KernelRow | None", ...]


def _consecutive(entries: Sequence[tuple[int, Across]]) -> list[list[tuple[int, Across]]]:
    runs: list[list[tuple[int, Across]]] = []
    for layer, across in entries:
        if not runs or layer - runs[-1][-1][0] > 1:
            runs.append([])
        runs[-1].append((layer, across))
    return runs


def _group(entries: Sequence[tuple[int, Across]]) -> Group:
    columns = zip(*(across for _, across in entries), strict=True)
    summed = tuple(_sum([row for row in column if row is not None]) for column in columns)
    row = next(row for row in summed if row is not None)
    layers = tuple(sorted({layer for layer, _ in entries if layer >= 0}))
    return Group(graph=row.graph, role=row.role, layers=layers, count=len(entries), variants=summed)


def _sum(rows: Sequence[KernelRow]) -> KernelRow | None:
    if not rows:
        return None

    def total(name: str) -> dict[str, float]:
        phases = dict.fromkeys(phase for row in rows for phase in getattr(row, name))
        return {phase: sum(getattr(row, name).get(phase, 0.0) for row in rows) for phase in phases}

    return dataclasses.replace(rows[0], ms=total("ms"), dequantize_ms=total("dequantize_ms"))
