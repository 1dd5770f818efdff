"""Draw ranges by block, what pruning changes, and what each calibrator's step is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_BLUE, _ORANGE, _GREY = "#4477aa", "#ee7733", "#999999"
_CALIBRATORS = {"percentile": ("o", _BLUE), "mse": ("s", _ORANGE), "entropy": ("^", "#228833")}


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Draw ranges by block, what pruning changes, and what each calibrator's step is."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(15, 10), gridspec_kw={"width_ratios": [25, 18]})
    plain = results["0.0"]
    for axis, part, ticks, corner in (
        (axes[0][0], "vision", (3, 5, 10, 20, 40), "upper left"),
        (axes[0][1], "decoder", (5, 10, 20, 40, 80, 160), "upper left"),
    ):
        both = plain[part]
        for shift, kind, colour in ((-0.17, "plain", _BLUE), (0.17, "smoothed", _ORANGE)):
            for place, (label, data) in enumerate(both[kind].items()):
                if kind == "smoothed" and label not in both["smoothed_blocks"]:
                    continue
                without = data["width"] * (1 - data.get("one_token_sets", 0))
                axis.plot([place + shift] * 2, [without, data["width"]], color=colour, lw=2)
                axis.plot(place + shift, data["width"], "o", color=colour, ms=6)
                axis.plot(place + shift, without, "o", color=colour, mfc="white", ms=6)
        axis.set_yscale("log")
        axis.set_ylim(0.8 * ticks[0], 1.3 * ticks[-1])
        axis.set_yticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.set_ylabel("width of the per-tensor range")
        axis.set_title(f"{part}, unpruned: a long line means that single tokens set the range", fontsize=11)
        for colour, text in ((_BLUE, "before SmoothQuant"), (_ORANGE, "after SmoothQuant (where it changes one)")):
            axis.plot([], [], "o", color=colour, label=text)
        axis.plot([], [], "o", color=_GREY, mfc="white", label="the same without the furthest token of each sample")
        axis.legend(fontsize=9, loc=corner)
        _blocks(axis, both["plain"])
    axis = axes[1][1]
    for ratio, colour, marker in (("0.5", _BLUE, "o"), ("0.75", _ORANGE, "s")):
        rows = results[ratio]["decoder"]["plain"]
        change = [data["width"] / plain["decoder"]["plain"][label]["width"] for label, data in rows.items()]
        axis.plot(change, marker, color=colour, label=f"{float(ratio):.0%} of the tokens removed")
    axis.axhline(1, color=_GREY, lw=1)
    axis.set_yscale("log")
    # Far enough out that a change of some percent doesn't look like one of ten times.
    axis.set_ylim(0.5, 2)
    axis.set_yticks([0.5, 0.7, 1, 1.4, 2], ["0.5", "0.7", "1", "1.4", "2"])
    axis.minorticks_off()
    axis.set_ylabel("range, pruned over unpruned")
    axis.set_title("decoder: what pruning changes", fontsize=11)
    axis.legend(fontsize=9)
    _blocks(axis, plain["decoder"]["plain"])
    axis = axes[1][0]
    every = {f"{p[0]}: {label}": data for p in ("vision", "decoder") for label, data in plain[p]["plain"].items()}
    for name, (marker, colour) in _CALIBRATORS.items():
        shares = [data["steps"][name] / data["steps"]["minmax"] for data in every.values()]
        axis.plot(shares, marker, color=colour, ms=5, label=name)
    axis.axhline(1, color=_GREY, lw=1, label="minmax")
    axis.set_yscale("log")
    axis.set_yticks([0.1, 0.2, 0.5, 1], ["0.1", "0.2", "0.5", "1"])
    axis.minorticks_off()
    axis.set_ylabel("INT8 step, of min-max's")
    axis.set_title("unpruned, before SmoothQuant: the step of each calibrator (v: vision, d: decoder)", fontsize=11)
    axis.legend(fontsize=9)
    _blocks(axis, every, size=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _blocks(axis: Any, rows: Mapping[str, Any], size: int = 9) -> None:
    axis.set_xticks(range(len(rows)), [label.replace("layer_", "") for label in rows], rotation=90, fontsize=size)
    axis.set_xlim(-0.7, len(rows) - 0.3)
    axis.grid(axis="y", color="#dddddd", lw=0.7)
    axis.set_axisbelow(True)
