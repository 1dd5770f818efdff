"""The rows of the table, and what their times come to."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lmmprune.compiler.flops.formula import TEXT_TOKENS

FLOAT, INT8, STOCK, TORCH = "fp32", "int8", "ort dynamic", "transformers"
PLAIN = ", Attention"
"""Behind the name of an engine whose attention is ONNX's own, behind a cache that grows by concatenation."""
Times = dict[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row: how it computes and how long the sequence is that it prefills."""

    engine: str
    ratio: float
    length: int

    @property
    def name(self) -> str:
        """``pruned 0.5 + int8``; the plain float one is the baseline."""
        if self.engine == FLOAT:
            return f"pruned {self.ratio:g}" if self.ratio else "baseline"
        return f"pruned {self.ratio:g} + {self.engine}" if self.ratio else self.engine


def speedup(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Return the median ratio within the rounds: a busy moment troubles both."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def summary(prefill: Times, decode: Times, ratios: Sequence[float]) -> dict[str, Any]:
    """Return the ratios that the times are for."""
    base = prefill["baseline"]
    result: dict[str, Any] = {
        "prefill_int8": speedup(base, prefill[INT8]),
        "prefill_int8_over_stock": speedup(prefill[STOCK], prefill[INT8]),
        "prefill_over_transformers": speedup(prefill[TORCH], base),
        "decode_int8": speedup(decode["baseline"], decode[INT8]),
        "decode_int8_over_stock": speedup(decode[STOCK], decode[INT8]),
        "decode_over_transformers": speedup(decode[TORCH], decode["baseline"]),
        **{
            f"{what}_{engine}_over_attention": speedup(times[engine + PLAIN], times[own])
            for what, times in (("prefill", prefill), ("decode", decode))
            for engine, own in ((FLOAT, "baseline"), (INT8, INT8))
        },
    }
    for ratio in ratios:
        pruned, both = f"pruned {ratio:g}", f"pruned {ratio:g} + {INT8}"
        expected = speedup(base, prefill[pruned]) * result["prefill_int8"]
        measured = speedup(base, prefill[both])
        result[f"product_{ratio:g}"] = {
            "pruned": speedup(base, prefill[pruned]),
            "expected": expected,
            "measured": measured,
            "measured_over_expected": measured / expected,
            "both_over_transformers": speedup(prefill[TORCH], prefill[both]),
        }
    return result


def report(tokens: int, rows: Sequence[Variant], prefill: Times, decode: Times, found: dict[str, Any]) -> Iterator[str]:
    """Yield Markdown: medians, spread and speed-up of every row, and what they come to."""
    yield from (f"### {tokens} visual tokens + {TEXT_TOKENS} of text", "")
    yield "| variant | tokens | prefill ms | lowest-highest | speed-up | decode ms/token | lowest-highest | speed-up |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        cells = [row.name, str(row.length)]
        for times in (prefill, decode):
            own = times[row.name]
            cells += [f"{statistics.median(own):.1f}", f"{min(own):.1f}-{max(own):.1f}"]
            cells += [f"{speedup(times['baseline'], own):.2f}"]
        yield f"| {' | '.join(cells)} |"
    yield ""
    for name, values in found.items():
        if name.startswith("product_"):
            yield (
                f"* ratio {name.removeprefix('product_')}: pruning {values['pruned']:.2f} x int8 "
                f"{found['prefill_int8']:.2f} = {values['expected']:.2f} expected, {values['measured']:.2f} measured "
                f"({values['measured_over_expected']:.2f} of it); {values['both_over_transformers']:.2f} times "
                "transformers."
            )
    yield (
        f"* int8 against fp32: prefill {found['prefill_int8']:.2f}, decode {found['decode_int8']:.2f} times as fast; "
        f"against quantize_dynamic: prefill {found['prefill_int8_over_stock']:.2f}, decode "
        f"{found['decode_int8_over_stock']:.2f}; fp32 against transformers: prefill "
        f"{found['prefill_over_transformers']:.2f}, decode {found['decode_over_transformers']:.2f}."
    )
    yield (
        "* against ONNX's own Attention behind a cache that grows: "
        f"prefill fp32 {found['prefill_fp32_over_attention']:.2f}, int8 {found['prefill_int8_over_attention']:.2f}; "
        f"decode fp32 {found['decode_fp32_over_attention']:.2f}, int8 {found['decode_int8_over_attention']:.2f} times "
        "as fast."
    )
    yield ""
