"""What was measured, on disk: a calibration that was stopped goes on, one that was finished isn't run again.

One file per key in ``$LMMPRUNE_CACHE`` or ``~/.cache/lmmprune``, replaced as a whole. It holds histograms, not ranges:
another percentile, or another calibrator that needs the bins, takes the same file.
"""

from __future__ import annotations

import contextlib
import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from lmmprune.caches import cache_directory
from lmmprune.compiler.bundle.atomic import replace_file
from lmmprune.compiler.bundle.bundle import file_sha256
from lmmprune.compiler.onnx_files.load_onnx import load_onnx
from lmmprune.compiler.quantize.histogram import Histogram

FORMAT = 1
_DAMAGE = (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile)


def default_directory() -> Path:
    """Return where calibrations are kept."""
    return cache_directory("calibration")


def graph_sha256(graph: Path) -> str:
    """Return the SHA-256 of a graph and of all its weights, as hexadecimal digits.

    Args:
        graph: ONNX file with its external data beside it.
    """
    digest = hashlib.sha256(file_sha256(graph).encode())
    tensors = [value.const_value for value in load_onnx(graph).graph.initializers.values()]
    files = sorted({str(tensor.location) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)})
    for name in files:
        digest.update(file_sha256(graph.parent / name).encode())
    return digest.hexdigest()


def load_state(file: Path, names: Mapping[str, Histogram]) -> int:
    """Fill histograms from a file.

    Args:
        file: What ``save_state`` wrote; missing, damaged or of another format counts as nothing.
        names: Fresh histograms by name.

    Returns:
        How many samples they have seen.
    """
    try:
        with np.load(file, allow_pickle=False) as stored:
            if int(stored["format"]) != FORMAT or stored["names"].tolist() != list(names):
                return 0
            finished = int(stored["finished"])
            ends, exponents, counts = stored["ends"], stored["exponents"], stored["counts"]
    except _DAMAGE:
        return 0
    if any(counts.shape != (len(names), 2 * histogram.bins) for histogram in names.values()):
        return 0
    for index, histogram in enumerate(names.values()):
        histogram.low, histogram.high = (float(end) for end in ends[index])
        histogram.exponent = int(exponents[index])
        histogram.counts = counts[index].astype(np.int64)
    return finished


def save_state(file: Path, seen: Mapping[str, Histogram], finished: int) -> None:
    """Write histograms, and how many samples they have seen; a disk that doesn't take them is no failure.

    Args:
        file: Replaced only when all is written.
        seen: Histograms by name.
        finished: Number of samples.
    """
    rows = list(seen.values())
    with contextlib.suppress(OSError), replace_file(file) as stream:
        np.savez_compressed(
            stream,
            format=np.array(FORMAT),
            finished=np.array(finished),
            names=np.array(list(seen)),
            ends=np.array([(row.low, row.high) for row in rows], np.float64),
            exponents=np.array([row.exponent for row in rows], np.int64),
            counts=np.array([row.counts for row in rows], np.int64),
        )
