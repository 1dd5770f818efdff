"""An explanation as text: a table that sets the first variant beside another, totals, and the reasons in words."""

from __future__ import annotations

from collections.abc import Iterator

from lmmprune.compiler.explain.reasons import NOT_QUANTIZED
from lmmprune.compiler.explain.rows import PHASES, Explanation, Group, KernelRow, VariantKernels, group_rows

LEGEND = (
    "ms: a run of the vision graph, or of the selection, or a prefill; the profiler's medians, summed over the layers, "
    "with every DequantizeLinear that only they read; ratio: times faster than the first"
)


def comparisons(explanation: Explanation) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Yield title, columns and rows of a table for every variant but the first, or for the only one."""
    first, *others = explanation.variants
    for pair in [[first, other] for other in others] or [[first]]:
        names = [variant.name for variant in pair]
        title = f"kernels of {names[-1]}" + (f" against {names[0]}, the first" if others else "")
        yield title, _columns(both=bool(others)), [_cells(group) for group in group_rows(pair)]


def totals(explanation: Explanation) -> list[list[str]]:
    """Return a row per variant and phase, for the columns of ``TOTALS``."""
    return [
        [
            f"{variant.name} {phase}",
            f"{total.total_ms:.2f}",
            f"{total.weights_ms:.2f}",
            f"{100 * total.integer_share:.0f} %",
            f"{total.quantizing_ms:.2f}",
        ]
        for variant in explanation.variants
        for phase, total in variant.phases.items()
    ]


TOTALS = ("phase", "all nodes ms", "products with weights ms", "in integer kernels", "quantize, dequantize ms")


def reasons(explanation: Explanation) -> list[str]:
    """Return a line per variant and reason: which layers stayed in floating point, or are slow, and why."""
    return [line for variant in explanation.variants for line in _reasons(variant)]


def _reasons(variant: VariantKernels) -> Iterator[str]:
    found: dict[str, dict[str, None]] = {}
    for group in group_rows([variant]):
        row = group.variants[0]
        assert row is not None
        for text in (row.reason, row.remark):
            if text is not None:
                found.setdefault(text, {})[group.name] = None
    for text, names in found.items():
        where = "all weights" if text == NOT_QUANTIZED.text else ", ".join(names)
        yield f"{variant.name}: {where}: {text}"


def _columns(*, both: bool) -> list[str]:
    columns = ["layers", "products", *(["first ran"] if both else []), "kernel"]
    for name in ("ms", "decode ms"):
        columns += ["first", name, "ratio"] if both else [name]
    return [*columns, "float because"]


def _cells(group: Group) -> list[str]:
    cells = [group.name, str(group.count), *(_kernel(row) for row in group.variants)]
    for phases in (("vision", "selection", "prefill"), ("decode",)):
        phase = next((phase for phase in phases if PHASES[phase] == group.graph), None)
        times = [None if phase is None or row is None else _ms(row, phase) for row in group.variants]
        cells += ["-" if time is None else f"{time:.3f}" for time in times]
        if len(times) > 1:
            cells.append(f"{times[0] / times[1]:.2f}x" if times[0] and times[1] else "-")
    last = group.variants[-1]
    return [*cells, (last.reason_name if last is not None else None) or ""]


def _ms(row: KernelRow, phase: str) -> float:
    return row.ms.get(phase, 0.0) + row.dequantize_ms.get(phase, 0.0)


def _kernel(row: KernelRow | None) -> str:
    return "-" if row is None else row.kernel or "?"
