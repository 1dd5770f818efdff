"""The result of a benchmark: rows of medians with their spread, and whether pruning and INT8 multiply."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmmprune.compiler.bundle.content import integers
from lmmprune.compiler.measure.memory import Memory
from lmmprune.compiler.measure.statistics import Estimate, speedup

LABELS = {"vision_ms": "vision", "prefill_ms": "prefill", "ttft_ms": "time to first token", "ms_per_token": "per token"}
METRICS = tuple(LABELS)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Median and quartiles of the rounds."""

    median: float
    q1: float
    q3: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise at least two values."""
        q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median=median, q1=q1, q3=q3)


@dataclass(frozen=True, kw_only=True)
class FollowUp:
    """Prefills of one bundle, the visual tokens being there; milliseconds.

    Attributes:
        prompt_tokens: Of the whole conversation, the second question included.
        reused_tokens: Of them those that the decoder had read.
        kept_ms: Each round's, on what it had read.
        anew_ms: Each round's, with everything read again.
        kept: Median and quartiles.
        anew: The same.
        ratio: Kept over anew, taken within each round.
    """

    prompt_tokens: int
    reused_tokens: int
    kept_ms: tuple[float, ...]
    anew_ms: tuple[float, ...]
    kept: Spread
    anew: Spread
    ratio: Spread

    def line(self, name: str) -> str:
        """Return it in one line, beginning with the bundle's name."""
        return (
            f"{name}, second question: {self.kept.median:.2f} ms ({self.kept.q1:.2f}..{self.kept.q3:.2f}), read anew"
            f" {self.anew.median:.2f} ms; {self.ratio.median:.3f} of it ({self.ratio.q1:.3f}..{self.ratio.q3:.3f}),"
            f" {self.reused_tokens} of {self.prompt_tokens} tokens read before"
        )


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """What a variant answers in a second, vision, prefill and decoding together, all rows of its batch busy.

    Attributes:
        samples: milliseconds per answer of each round: those of a batch, by its rows.
        answers: answers per second.
        tokens: new tokens per second.
        ratio: times as many as the first row, with its 95 % interval, rounds drawn again.
    """

    samples: tuple[float, ...]
    answers: Spread
    tokens: Spread
    ratio: Estimate

    @classmethod
    def of(cls, own: Sequence[float], first: Sequence[float], new_tokens: int) -> Throughput:
        """Summarise milliseconds per answer, of a variant and of the first one in the same rounds."""
        return cls(
            samples=tuple(own),
            answers=Spread.of([1e3 / value for value in own]),
            tokens=Spread.of([1e3 * new_tokens / value for value in own]),
            ratio=speedup(first, own),
        )


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant.

    Attributes:
        name: short and unique among the rows.
        samples: per metric of ``METRICS``, the milliseconds of each round.
        times: their median and quartiles.
        speedup: per metric, how many times faster than the first row; the ratio is taken within each round.
        intervals: the same with its 95 % interval, rounds drawn again.
        sha256: of the bundle (``Bundle.sha256``); empty where it was measured elsewhere.
        int4: inputs that share a scale in weights of four bits; None: there are none.
        batch: questions that are answered at once; times are those of all of them.
        throughput: None where it was measured elsewhere.
        weights_bytes: size of the graphs with their weights on disk.
        follow_up: a second question; None where none was asked.
        memory: of a process that loads the bundle and answers; None if it wasn't measured.
    """

    name: str
    path: str
    model: str
    method: str | None
    tokens_before: int
    image_tokens: float
    dtype: str
    int8: str | None
    target: str
    weights_bytes: int
    memory: Memory | None
    samples: dict[str, tuple[float, ...]]
    times: dict[str, Spread]
    speedup: dict[str, Spread]
    intervals: dict[str, Estimate]
    sha256: str = ""
    int4: int | None = None
    follow_up: FollowUp | None = None
    batch: int = 1
    throughput: Throughput | None = None

    @property
    def integers(self) -> str | None:
        """How it is quantized, in a word; None: not at all."""
        return integers(self.int8, self.int4)


@dataclass(frozen=True, kw_only=True)
class Product:
    """Whether pruning and integers multiply: speed-ups of each alone, their product, and of both together.

    ``int8`` is that of the integers, whether of eight bits or, as ``bits`` says, of four.
    """

    metric: str
    baseline: str
    both: str
    pruning: float
    int8: float
    expected: float
    measured: float
    bits: int = 8

    def line(self) -> str:
        """Return the result in one line."""
        return (
            f"pruning x int{self.bits} = expected, measured ({LABELS[self.metric]}): {self.pruning:.2f}x x"
            f" {self.int8:.2f}x = {self.expected:.2f}x, {self.measured:.2f}x  ({self.both} against {self.baseline})"
        )


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """All rows with the settings and the machine they were measured with."""

    settings: dict[str, Any]
    machine: dict[str, Any]
    rows: tuple[Row, ...]
    products: tuple[Product, ...]

    @property
    def where(self) -> str:
        """What it was measured on: the processor or GPU, and what ran the graphs."""
        cores = f", {self.machine['cores']} cores" if "cores" in self.machine else ""
        gpus = "".join(f", {gpu['name']}" for gpu in self.machine.get("gpus", ()))
        backends = ", ".join(f"{name} {version}" for name, version in self.machine.get("backends", {}).items())
        return f"{self.machine['processor']}{cores}{gpus}, {self.machine.get('engine', backends)}{self._power()}"

    def _power(self) -> str:
        """Return a board's power mode, and its hottest sensor before and after, where a plan's script noted them."""
        states = [state for state in self.machine.get("power", {}).values() if state]
        modes = dict.fromkeys(str(state["mode"]) for state in states if state["mode"])
        hottest = [f"{max(state['temperatures'].values()):.0f}" for state in states if state["temperatures"]]
        text = f", power mode {', then '.join(modes)}" if modes else ""
        return f"{text}, {' -> '.join(hottest)} degrees C" if hottest else text

    def as_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return dataclasses.asdict(self)


def paired_speedup(slow: Sequence[float], fast: Sequence[float]) -> Spread:
    """Return how many times faster the second variant is: the ratio within each round, so that load cancels out."""
    return Spread.of([a / b for a, b in zip(slow, fast, strict=True)])


def find_products(rows: Sequence[Row]) -> tuple[Product, ...]:
    """Return expected and measured speed-ups for each group of neither, pruned, quantized and both among the rows.

    The four belong together when model, target, dtype and batch are the same, and when the two pruned ones have the
    same method and counts, the two quantized ones the same scheme.
    """
    products = []
    for both in rows:
        if not both.integers or both.image_tokens == both.tokens_before:
            continue
        kind = (both.model, both.target, both.dtype, both.batch)
        same = [row for row in rows if (row.model, row.target, row.dtype, row.batch) == kind]
        full = [row for row in same if row.image_tokens == both.tokens_before]
        neither = next((row for row in full if not row.integers), None)
        quantized = next((row for row in full if row.integers == both.integers), None)
        pruned = next(
            (
                row
                for row in same
                if not row.integers and (row.method, row.image_tokens) == (both.method, both.image_tokens)
            ),
            None,
        )
        if neither and quantized and pruned:
            products += [_product(metric, neither, pruned, quantized, both) for metric in ("ttft_ms", "vision_ms")]
    return tuple(products)


def _product(metric: str, neither: Row, pruned: Row, quantized: Row, both: Row) -> Product:
    alone, integer, together = (
        paired_speedup(neither.samples[metric], row.samples[metric]).median for row in (pruned, quantized, both)
    )
    return Product(
        metric=metric,
        baseline=neither.name,
        both=both.name,
        pruning=alone,
        int8=integer,
        expected=alone * integer,
        measured=together,
        bits=8 if both.int4 is None else 4,
    )
