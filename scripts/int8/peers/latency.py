"""Time the tools' graphs, interleaved: each round runs all of them once."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peers.judge import open_session
from peers.tools import PARTS, feeds

Graphs = Mapping[str, Mapping[str, Path]]
"""Part -> name of the tool (or ``float32``) -> ONNX file."""


def latency(work: Path, graphs: Graphs, rounds: int, threads: int, *, large: bool) -> dict[str, Any]:
    """Return ``vision``, ``prefill`` and ``decode step`` -> tool -> times."""
    recorded = {part: list(feeds(work, part)) for part in PARTS}
    result = {}
    for key, part, feed in (
        ("vision", "vision", recorded["vision"][0]),
        ("prefill", "decoder", recorded["decoder"][0]),
        ("decode step", "decoder", recorded["decoder"][-1]),
    ):
        # At full width not all sessions fit into memory at once: each tool beside float32 alone.
        plain = {"float32": graphs[part]["float32"]}
        groups = [plain | {name: path} for name, path in graphs[part].items()] if large else [graphs[part]]
        rows: dict[str, Any] = {}
        for group in groups:
            rows = time_all(group, feed, rounds, threads) | rows
        result[key] = rows
    return result


def time_all(graphs: Mapping[str, Path], feed: dict[str, Any], rounds: int, threads: int) -> dict[str, Any]:
    """Return median ms, quartiles, and the median of each round's ratio to float."""
    sessions = {name: open_session(path, threads) for name, path in graphs.items()}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(rounds + 2):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(None, feed)
            if turn >= 2:
                times[name].append((time.perf_counter() - start) * 1e3)
    rows = {}
    for name, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        ratio = statistics.median(a / b for a, b in zip(values, times["float32"], strict=True))
        rows[name] = {"ms": middle, "quartiles": [low, high], "ratio": ratio}
    return rows
