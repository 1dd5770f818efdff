"""Run a bundle's graphs in ONNX Runtime, on the CPU or on a CUDA device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmmprune.compiler.backends.open_graph import failures, open_graph, reason
from lmmprune.compiler.backends.session import Value
from lmmprune.compiler.bundle.interface import Graph
from lmmprune.compiler.targets.target import Target
from lmmprune.compiler.targets.targets import TARGETS
from lmmprune.errors import BundleError, InputError, TargetError, require
from lmmprune.limits import MOST_THREADS, bounded


class OrtSession:
    """One graph in ONNX Runtime; satisfies ``Session``.

    Weights in external files are mapped by ONNX Runtime itself, next to the graph. Values are ``OrtValue``; outputs
    stay on the device of the target.
    """

    def __init__(
        self,
        graph: Path,
        *,
        target: str = "ort-cpu",
        threads: int | None = None,
        in_place: Mapping[str, str] = MappingProxyType({}),
        expected: Graph | None = None,
    ) -> None:
        """Load a graph.

        Args:
            graph: The ONNX file.
            target: Name of a target that ONNX Runtime runs.
            threads: Threads within an operator; None leaves it to ONNX Runtime (one per physical core).
            in_place: Output -> the input whose memory it shares; such an output is its input's value, written anew.
            expected: What the manifest says of its inputs and outputs; None: nothing does.

        Raises:
            MissingExtraError: onnxruntime isn't installed.
            TargetError: This target isn't one of ONNX Runtime, or this machine doesn't have its provider.
            BundleError: ONNX Runtime refuses the graph, or its inputs or outputs aren't those that are expected.
        """
        row = target_of(target)
        provider, self._device = str(row.provider), row.device
        self._ort: Any = require("onnxruntime", row.extra)
        available = self._ort.get_available_providers()
        if provider not in available:
            raise TargetError(
                f"target '{target}' needs onnxruntime's {provider}, this one has {', '.join(available)}: "
                f"pip uninstall onnxruntime, then pip install 'lmmprune[{row.extra}]'"
            )
        options = session_options(self._ort, threads)
        self._session = open_graph(self._ort, graph, options, providers=[provider], expected=expected)
        # Without a working driver onnxruntime computes on the CPU instead, and says so in its log only.
        if provider not in self._session.get_providers():
            raise TargetError(
                f"target '{target}': onnxruntime {self._ort.__version__} can't start its {provider} here (driver, CUDA "
                "and cuDNN must be those that it was built for, see 'lmmprune doctor'): export again with "
                "'--target ort-cpu'"
            )
        self._in_place, self._graph = in_place, graph
        self._outputs: list[str] = [output.name for output in self._session.get_outputs()]

    def upload(self, array: NDArray[np.generic]) -> Value:
        """Return an array as an ``OrtValue`` on the session's device."""
        return self._ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self._device, 0)

    def download(self, value: Value) -> NDArray[Any]:
        """Return an ``OrtValue`` as an array."""
        array: NDArray[Any] = value.numpy()
        return array

    def run(self, feeds: Mapping[str, Value]) -> dict[str, Value]:
        """Run the graph; inputs and outputs are bound, so nothing is copied through numpy.

        Raises:
            BundleError: The graph doesn't take these inputs, or fails on them.
        """
        try:
            return run_bound(self._session, feeds, self._outputs, self._in_place, self._device)
        except failures(self._ort) as error:
            ran = f"onnxruntime {self._ort.__version__} failed running '{self._graph.name}'"
            raise BundleError(f"{ran}: {reason(error)}: export again") from error


def run_bound(
    session: Any, feeds: Mapping[str, Value], outputs: Sequence[str], in_place: Mapping[str, str], device: str = "cpu"
) -> dict[str, Value]:
    """Run ONNX Runtime's session on ``OrtValue``s and return those that it makes.

    Args:
        session: Of ONNX Runtime.
        feeds: Its inputs.
        outputs: Names of all its outputs, in their order.
        in_place: Output -> the input whose memory it shares.
        device: Where the others are made.
    """
    binding = session.io_binding()
    for name, value in feeds.items():
        binding.bind_ortvalue_input(name, value)
    for name in outputs:
        if name in in_place:
            binding.bind_ortvalue_output(name, feeds[in_place[name]])
        else:
            binding.bind_output(name, device)
    session.run_with_iobinding(binding)
    made = dict(zip(outputs, binding.get_outputs(), strict=True))
    # An OrtValue made of an array keeps it alive; the one that the binding gives back for it doesn't.
    return {**made, **{name: feeds[into] for name, into in in_place.items()}}


def session_options(ort: Any, threads: int | None) -> Any:
    """Return the options that every session of a bundle is loaded with; measuring tools add theirs.

    Args:
        ort: The module ``onnxruntime``.
        threads: Threads within an operator; None leaves it to ONNX Runtime.

    Raises:
        InputError: More than any machine has, or none.
    """
    options = ort.SessionOptions()
    # Where only the weights are INT8: products in integer arithmetic inside of the kernel.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
    if threads is not None:
        try:
            threads = bounded(threads, "threads", 1, MOST_THREADS)
        except ValueError as error:
            raise InputError(str(error)) from error
        options.intra_op_num_threads = threads
    return options


def target_of(name: str) -> Target:
    """Return the target of a bundle, where ONNX Runtime runs it.

    Args:
        name: Target of the bundle; no alias.

    Raises:
        TargetError: Graphs of this target aren't meant for ONNX Runtime.
    """
    ours = {target.name: target for target in TARGETS.values() if target.provider is not None}
    if name not in ours:
        raise TargetError(
            f"this bundle was exported for '{name}', onnxruntime runs {' and '.join(ours)}: export again with "
            f"'--target ort-cpu', or compile it for its device with 'lmmprune build DIR --target {name}'"
        )
    return ours[name]
