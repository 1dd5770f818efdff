"""Measure the ranges of a graph's activations on samples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from lmmprune.compiler.quantize.cache import default_directory, graph_sha256, load_state, save_state
from lmmprune.compiler.quantize.calibrators import Calibrator, Integers
from lmmprune.compiler.quantize.histogram import BINS, Histogram
from lmmprune.compiler.quantize.observe import FETCHED_BYTES, watch_extremes, watch_values
from lmmprune.compiler.runtime.decode_steps import Steps, drive
from lmmprune.errors import InputError, require
from lmmprune.passes.int8.int8 import Range

SAVE_EVERY = 4
"""Samples after which the state is written, so that a killed calibration loses no more than these."""


def measure(
    graph: Path,
    names: Sequence[str],
    samples: Sequence[Callable[[], Steps]],
    *,
    calibrator: Calibrator,
    integers: Integers,
    origin: str | None = None,
    cache: Path | None = None,
    done: Callable[[int], None] = lambda finished: None,
    limit: int = FETCHED_BYTES,
) -> dict[str, Range]:
    """Run a float32 graph on samples and return the range of each watched value.

    What was seen is kept under a key made from the graph with its weights, the names, ``origin`` and the version of
    ONNX Runtime. The same key again runs no sample; a calibration that was stopped goes on behind the last state that
    it wrote, to the very ranges of one that wasn't.

    Args:
        graph: ONNX file; its external data stays where it is.
        names: Values to watch; with none, nothing is run.
        samples: Each starts the runs of one sample.
        calibrator: Chooses the ranges.
        integers: What the activations become.
        origin: Digest of everything that ``samples`` depend on; None keeps nothing on disk.
        cache: Directory of the states; None is ``default_directory()``.
        done: Called with the number of finished samples after each, and once with those that needn't run.
        limit: Bytes of watched values that a session may hold at once.

    Raises:
        InputError: There are no samples, or a value holds NaN or infinity.
    """
    if not samples:
        raise InputError("no samples to calibrate on, INT8 ranges come from real inputs: give --calib with pictures")
    if not names:
        return {}
    bins = BINS if calibrator.histogram else 0
    seen = {name: Histogram(name=name, bins=bins) for name in names}
    file = None if origin is None else (cache or default_directory()) / f"{_key(graph, names, bins, origin)}.npz"
    finished = min(load_state(file, seen), len(samples)) if file else 0
    if finished:
        done(finished)
    if finished < len(samples):
        if calibrator.histogram:
            run = watch_values(graph, names, lambda name, array: seen[name].update(array), limit=limit)
        else:
            run = watch_extremes(graph, names, lambda name, low, high: seen[name].extend(low, high))
        for index in range(finished, len(samples)):
            drive(samples[index](), run)
            if file and ((index + 1) % SAVE_EVERY == 0 or index + 1 == len(samples)):
                save_state(file, seen, index + 1)
            done(index + 1)
    return {name: calibrator.range(histogram, integers) for name, histogram in seen.items()}


def _key(graph: Path, names: Sequence[str], bins: int, origin: str) -> str:
    parts = [graph_sha256(graph), list(names), bins, origin, require("onnxruntime", "export").__version__]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
