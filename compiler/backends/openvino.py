"""Run a bundle's graphs in OpenVINO on the CPU, which reads the same ONNX files as ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmmprune.compiler.backends.numpy_types import numpy_type
from lmmprune.compiler.backends.openvino_state import Held, State, hold_cache
from lmmprune.compiler.backends.session import Value
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.bundle.hold_signature import Found, hold_signature
from lmmprune.compiler.bundle.interface import Graph, Tensor
from lmmprune.errors import BundleError, InputError, one_line, require
from lmmprune.limits import MOST_THREADS, bounded

EXTRA = "openvino"
_TYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64", "i64": "int64", "i32": "int32"}
"""OpenVINO's names of types, where the manifest has another."""


class OpenVinoSession:
    """One graph in OpenVINO; satisfies ``Session``.

    Values are ``openvino.Tensor`` on the host, or ``Held`` where a request keeps them for its next run.
    """

    def __init__(
        self,
        graph: Path,
        *,
        threads: int | None = None,
        dtype: str = "float32",
        group: int | None = None,
        carried: Mapping[str, str] = MappingProxyType({}),
        expected: Graph | None = None,
    ) -> None:
        """Read and compile a graph.

        Args:
            graph: The ONNX file.
            threads: Threads that compute; None leaves it to OpenVINO.
            dtype: What it computes in: unless it is told, OpenVINO takes bfloat16 where the CPU has it.
            group: Inputs that share a scale in weights of few bits: so many activations are rounded together where
                OpenVINO computes with integers (its own choice is 32, and slower).
            carried: Output -> the input that it becomes in the next run: it stays in the request that made it, is valid
                until that runs again, and isn't copied.
            expected: What the manifest says of its inputs and outputs; None: nothing does.

        Raises:
            MissingExtraError: openvino isn't installed.
            BundleError: OpenVINO refuses the graph, or its inputs or outputs aren't those that are expected.
        """
        self._ov: Any = require("openvino", EXTRA)
        # A cache of 8 bits, as it takes by itself, moves logits by more than float32 is checked to.
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _hint(dtype),
            "KV_CACHE_PRECISION": _hint(dtype),
        }
        if group is not None:
            settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = str(group)
        if threads is not None:
            try:
                settings["INFERENCE_NUM_THREADS"] = str(bounded(threads, "threads", 1, MOST_THREADS))
            except ValueError as error:
                raise InputError(str(error)) from error
        self._graph = graph
        try:
            model = self._ov.Core().read_model(graph)
            inputs, outputs = model.inputs, model.outputs
            self._variables = hold_cache(self._ov, model, carried) if carried else {}
            self._compiled = self._ov.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise BundleError(
                f"openvino {self._ov.__version__} can't load '{graph}': {_reason(error)}: export again, or install the"
                " openvino that it was exported for"
            ) from error
        if expected is not None:
            hold_signature(graph, expected, _found(inputs, expected.inputs), _found(outputs, expected.outputs))
        self._outputs: list[str] = [output.get_any_name() for output in self._compiled.outputs]
        self._carried = dict(carried)

    def upload(self, array: NDArray[np.generic]) -> Value:
        """Return an array as a tensor."""
        given = np.ascontiguousarray(array)
        if given.dtype.name == "bfloat16":
            # It knows no such type of NumPy's: the same bits.
            return self._ov.Tensor(given.view(np.uint16), self._ov.Shape(given.shape), self._ov.Type.bf16)
        return self._ov.Tensor(given)

    def download(self, value: Value) -> NDArray[Any]:
        """Return a tensor as an array."""
        tensor = value.read() if isinstance(value, Held) else value
        array: NDArray[Any] = tensor.data
        # It shows bfloat16 as float16.
        return array.view(numpy_type("bfloat16")) if tensor.element_type == self._ov.Type.bf16 else array

    def run(self, feeds: Mapping[str, Value]) -> dict[str, Value]:
        """Run the graph; inputs are shared with the request, and what is carried isn't copied.

        Raises:
            BundleError: The graph doesn't take these inputs, or fails on them.
        """
        try:
            state = self._state(feeds)
            state.run({name: value for name, value in feeds.items() if name not in self._variables})
            made = {name: self._kept(state.request.get_tensor(name)) for name in self._outputs}
        except (RuntimeError, TypeError, KeyError) as error:
            raise BundleError(
                f"openvino {self._ov.__version__} failed running '{self._graph.name}': {_reason(error)}: export again"
            ) from error
        held = {out: Held(state, self._variables[past], state.runs) for out, past in self._carried.items()}
        return {**made, **held}

    def _kept(self, tensor: Any) -> Any:
        """Return an output that stays as it is when its request runs again."""
        if not self._variables:
            return tensor
        copy = self._ov.Tensor(tensor.element_type, tensor.shape)
        tensor.copy_to(copy)
        return copy

    def _state(self, feeds: Mapping[str, Value]) -> State:
        """Return the request that holds what is carried, or another one that was given it."""
        given = {name: feeds[name] for name in self._variables}
        before = {value.state if isinstance(value, Held) and value.there else None for value in given.values()}
        if len(before) == 1 and (found := before.pop()) is not None:
            return found
        # A request of its own (0.1 ms): its outputs stay valid while others run.
        state = State(self._compiled.create_infer_request())
        for name, value in given.items():
            tensor = value.read() if isinstance(value, Held) else value
            if tensor.get_size():
                state.write(self._variables[name], tensor)
        return state


def open_component(bundle: Bundle, component: str, *, threads: int | None = None) -> OpenVinoSession:
    """Load one of a bundle's graphs; its decoder keeps the cache in its requests.

    Args:
        bundle: For OpenVINO.
        component: Of its graphs.
        threads: Threads that compute; None leaves it to OpenVINO.

    Raises:
        BundleError: The graph can't be used.
    """
    precision, decodes = bundle.manifest.precision, component == "decoder"
    graph = bundle.manifest.graphs[component]
    # seen: attention over OpenVINO's own cache reads prompts slower in float32 than in bfloat16, and beside products of
    # integers bfloat16 rounds little.
    rounds = decodes and precision.quantized and precision.dtype == "float32"
    return OpenVinoSession(
        bundle.file(graph.file),
        threads=threads,
        dtype="bfloat16" if rounds else precision.dtype,
        group=precision.group,
        carried=bundle.manifest.cache.carried if decodes else {},
        expected=graph,
    )


def _hint(dtype: str) -> str:
    return {"bfloat16": "bf16"}.get(dtype, "f32")


def _reason(error: BaseException) -> str:
    """Return the last line of what OpenVINO says: those before name its own files."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return one_line(lines[-1] if lines else type(error).__name__, most=160)


def _found(ports: Any, promised: Sequence[Tensor]) -> Found:
    """Return what is there; OpenVINO infers fewer static dimensions than ONNX does: those it doesn't know may be so."""
    shapes = {tensor.name: tensor.shape for tensor in promised}
    found = {}
    for port in ports:
        name, shape = port.get_any_name(), _shape(port)
        told = shapes.get(name, ())
        if len(told) == len(shape):
            shape = [own if known is None else known for known, own in zip(shape, told, strict=True)]
        found[name] = (_type(port), shape)
    return found


def _type(port: Any) -> str:
    name = str(port.get_element_type().get_type_name())
    return _TYPES.get(name, name)


def _shape(port: Any) -> list[int | str | None]:
    return [dim.get_length() if dim.is_static else None for dim in port.get_partial_shape()]
