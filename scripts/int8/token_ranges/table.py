"""The findings, and the activations whose range a single token sets most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from token_ranges.findings import findings
from token_ranges.labels import FIRST, RATIOS


def markdown(results: Mapping[str, Any], worst: int) -> str:
    """Return the page: ``worst`` rows for each graph."""
    lines = ["![ranges](activation_ranges.png)", "", *findings(results), ""]
    for part, first in FIRST.items():
        plain = results["0.0"][part]["plain"]
        order = sorted(plain, key=lambda label: -plain[label].get("one_token_sets", 0))[:worst]
        lines += [
            f"## {part.capitalize()}: the {worst} ranges that one token sets most, of {len(plain)}",
            "",
            f"| read by | range | set by {first} | set by one token | that token over the median one |"
            " that token is visual | after SmoothQuant: set by one token, over the median |"
            " range at 50 %, 75 % removed | step: min-max | percentile | mse | entropy |",
            "|---" * 12 + "|",
        ]
        for label in order:
            data, smooth = plain[label], results["0.0"][part]["smoothed"][label]
            pruned = [results[str(r)][part]["plain"][label]["width"] / data["width"] for r in RATIOS[1:]]
            after = f"{smooth['one_token_sets']:.0%}, {smooth['top_over_median']:.1f}x"
            lines.append(
                f"| {label} | {data['low']:.2f} .. {data['high']:.2f} | {data['first_sets']:.0%} |"
                f" {data['one_token_sets']:.0%} | {data['top_over_median']:.1f}x | {data['top_is_visual']:.0%} |"
                f" {after if label in results['0.0'][part]['smoothed_blocks'] else 'not smoothed'} |"
                f" {pruned[0]:.2f}x, {pruned[1]:.2f}x | "
                + " | ".join(f"{data['steps'][name]:.4f}" for name in ("minmax", "percentile", "mse", "entropy"))
                + " |"
            )
        lines.append("")
    return "\n".join(lines)
