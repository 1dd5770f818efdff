"""Run one graph in ONNX Runtime with its profiler on: the graph that it made of it, and the time of every node."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmmprune.compiler.backends.onnxruntime import run_bound, session_options
from lmmprune.compiler.backends.open_graph import open_graph
from lmmprune.compiler.bundle.interface import Graph
from lmmprune.compiler.explain.kernels import QUANTIZING
from lmmprune.errors import BundleError, InputError, require

Feeds = Mapping[str, NDArray[Any]]

_SUFFIX = "_kernel_time"


@dataclass(frozen=True, kw_only=True)
class Times:
    """Milliseconds of one phase, medians over its runs.

    Attributes:
        nodes: By name of the node.
        total: Of all nodes together.
        quantizing: Of the nodes that quantize and dequantize.
    """

    nodes: Mapping[str, float]
    total: float
    quantizing: float


class ProfiledSession:
    """A graph in ONNX Runtime on the CPU that notes the time of every node; use it in a ``with`` statement.

    The optimised graph is written with its weights, as the runtime writes it: that takes as much room in the folder
    for temporary files (``TMPDIR``) as the graph has weights, and is removed at the end.
    """

    def __init__(self, graph: Path, *, threads: int | None = None, expected: Graph | None = None) -> None:
        """Load a graph.

        Args:
            graph: The ONNX file.
            threads: Threads within an operator; None leaves it to ONNX Runtime.
            expected: What the manifest says of its inputs and outputs; None: nothing does.

        Raises:
            MissingExtraError: onnxruntime isn't installed.
            BundleError: ONNX Runtime refuses the graph.
            InputError: There is no room for the optimised graph.
        """
        self._ort: Any = require("onnxruntime", "cpu")
        self._folder = tempfile.TemporaryDirectory(prefix="lmmprune-explain-")
        folder = Path(self._folder.name)
        self.optimised = folder / "optimised.onnx"
        options = session_options(self._ort, threads)
        options.optimized_model_filepath = str(self.optimised)
        # Beside the graph: a file with its weights inside ends at 2 GB.
        prefix = "session.optimized_model_external_initializers_"
        options.add_session_config_entry(f"{prefix}file_name", "optimised.data")
        options.add_session_config_entry(f"{prefix}min_size_in_bytes", "1024")
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        try:
            self._session: Any = open_graph(self._ort, graph, options, expected=expected)
        except BundleError as error:
            self._folder.cleanup()
            if "No space left" in str(error.__cause__):
                raise InputError(f"no room in '{folder.parent}' for the optimised graph: set TMPDIR") from error
            raise
        self._names = [output.name for output in self._session.get_outputs()]
        self._phases: list[str | None] = []

    def __enter__(self) -> ProfiledSession:
        """Return the session."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Remove what was written."""
        self._session = None
        self._folder.cleanup()

    def run(
        self, feeds: Feeds, phase: str | None, in_place: Mapping[str, str] = MappingProxyType({})
    ) -> dict[str, NDArray[Any]]:
        """Run the graph and count the run for a phase; None: a warm-up.

        Args:
            feeds: Its inputs.
            phase: What the run is counted for.
            in_place: Output -> the input whose memory it shares.
        """
        self._phases.append(phase)
        arrays = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        values = {name: self._ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
        outputs = run_bound(self._session, values, self._names, in_place)
        return {name: arrays[in_place[name]] if name in in_place else value.numpy() for name, value in outputs.items()}

    def finish(self) -> dict[str, Times]:
        """Stop the profiler and return the times of every phase."""
        path = Path(self._session.end_profiling())
        return read_profile(json.loads(path.read_text(encoding="utf-8")), self._phases)


def read_profile(events: Sequence[Mapping[str, Any]], phases: Sequence[str | None]) -> dict[str, Times]:
    """Return the times of every phase from the events of a profile.

    Args:
        events: As ONNX Runtime writes them: a ``model_run`` for every run, a ``*_kernel_time`` for every node; times
            in microseconds.
        phases: The phase of every run, in their order; runs of None aren't counted.
    """
    runs = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == "model_run")
    nodes = sorted((e for e in events if e.get("cat") == "Node" and e["name"].endswith(_SUFFIX)), key=lambda e: e["ts"])
    samples: dict[str, dict[str, list[float]]] = {phase: defaultdict(list) for phase in phases if phase is not None}
    sums: dict[str, list[tuple[float, float]]] = {phase: [] for phase in samples}
    index = 0
    for phase, (start, end) in zip(phases, runs, strict=True):
        total = quantizing = 0.0
        while index < len(nodes) and nodes[index]["ts"] <= end:
            event = nodes[index]
            index += 1
            if phase is None or event["ts"] < start:
                continue
            spent = event["dur"] / 1e3
            total += spent
            quantizing += spent if event["args"]["op_name"] in QUANTIZING else 0.0
            samples[phase][event["name"].removesuffix(_SUFFIX)].append(spent)
        if phase is not None:
            sums[phase].append((total, quantizing))
    return {
        phase: Times(
            nodes={name: statistics.median(values) for name, values in rows.items()},
            total=statistics.median(total for total, _ in sums[phase]),
            quantizing=statistics.median(quantizing for _, quantizing in sums[phase]),
        )
        for phase, rows in samples.items()
    }
