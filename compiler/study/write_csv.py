"""All figures of a study as CSV, one line per cell; shares in 0..1, times in ms, interactions in points and ratios."""

from __future__ import annotations

import csv
import io
from typing import Any

from lmmprune.compiler.measure.statistics import Estimate
from lmmprune.compiler.study.findings import TIMES, Findings, Pair, Row


def csv_text(findings: Findings) -> str:
    """Return the table; what isn't there, as for a refused cell, is empty."""
    pairs = {pair.quantized.cell: pair for pair in findings.pairs}
    rows = [cell_figures(row, pairs.get(row.cell)) for row in findings.rows]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(dict.fromkeys(name for row in rows for name in row)), restval="")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def cell_figures(row: Row, pair: Pair | None) -> dict[str, Any]:
    """Return the figures of a cell by name; what concerns both precisions stands with the one in integers.

    Args:
        row: The cell.
        pair: With its float twin, where this one is in integers.
    """
    result = row.result
    figures: dict[str, Any] = {
        "cell": row.cell.name,
        "variant": row.cell.series,
        "method": row.cell.method or "",
        "ratio": row.cell.ratio,
        "precision": row.cell.precision if row.cell.quantized else result.dtype,
        "refused": result.refused or "",
    }
    if row.accuracy is None:
        return figures
    figures |= {
        "tokens_before": result.tokens_before,
        "average_tokens": result.average_tokens,
        "bytes": result.bytes,
        "prefill_flops": result.prefill_flops,
        "flops_speedup": result.flops_before / result.prefill_flops,
        "questions": len(result.correct),
        "correct": sum(result.correct),
        "correct_first_words": sum(result.first_word),
        "checks_failed": "; ".join(check.name for check in result.failures),
        **_columns("accuracy", row.accuracy),
        **_columns("first_word_accuracy", row.first_word),
        **_columns("retention", row.retention),
        **_columns("loss_points", row.loss),
    }
    for kind, share in row.parts.kinds.items():
        figures |= _columns(f"accuracy_of_{kind}", share)
    if row.parts.hard_questions:
        figures |= {
            "questions_downsample_wrong": row.parts.hard_questions,
            **_columns("accuracy_downsample_wrong", row.parts.hard),
            **_columns("accuracy_downsample_right", row.parts.easy),
        }
    if (near := row.parts.measures) is not None:
        for measure in ("first", "exact", "prefix", "first_kl", "kl", "perplexity_ratio"):
            figures |= _columns(f"base_{measure}", getattr(near, measure))
    for metric in TIMES:
        if timed := row.times.get(metric):
            figures |= {metric: timed.ms, **_columns(f"{metric}_speedup", timed.speedup)}
    figures["pareto_front"] = int(row.on_front)
    if pair is None:
        return figures
    figures |= {
        **_columns("integers_cost_points", pair.cost),
        **_columns("accuracy_interaction_points", pair.interaction, null=0),
    }
    for metric in TIMES:
        figures |= _columns(f"{metric}_interaction", pair.speed.get(metric), null=1)
    for one in pair.overlaps:
        figures |= {f"iou_{one.site}_mean": one.mean, f"iou_{one.site}_lowest": one.lowest}
    return figures


def _columns(name: str, one: Estimate | None, *, null: float | None = None) -> dict[str, Any]:
    if one is None:
        return {}
    columns = {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}
    return columns if null is None else {**columns, f"{name}_contains_{null:g}": int(one.contains(null))}
