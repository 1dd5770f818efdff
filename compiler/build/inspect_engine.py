"""What is known of an engine: the types of the weights that went in, and, where its GPU is, the type of every layer."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from lmmprune.compiler.backends.trt_log import make_log
from lmmprune.compiler.backends.trt_start import start
from lmmprune.compiler.build.read_graph import read_graph
from lmmprune.compiler.bundle.manifest import Graph
from lmmprune.errors import BundleError, TargetError


@dataclass(frozen=True, kw_only=True)
class GraphWeights:
    """The weights of a graph: bytes by type (``INT8``, ``FLOAT16``, ...), and what they would take in 16 bits each."""

    bytes: Mapping[str, int]
    float16_bytes: int


@dataclass(frozen=True, kw_only=True)
class EngineLayer:
    """One layer of an engine, as the inspector tells it.

    Attributes:
        name: Name; of a fused layer, those of its parts.
        kind: The compiler's name of what it is.
        nodes: The ONNX nodes that it computes, where the inspector says.
        inputs: Types of its inputs, such as ``INT8``.
        outputs: Types of its outputs.
        weights: Type of its weights, None if it has none.
        tactic: Name of the kernel, None if the engine doesn't say.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: str | None
    tactic: str | None

    @property
    def precision(self) -> str:
        """Type that it computes in: of its weights, else of its first input, else of its first output."""
        return self.weights or next(iter((*self.inputs, *self.outputs)), "unknown")


def graph_weights(graph: Path, expected: Graph | None = None) -> GraphWeights | None:
    """Count the weights of an ONNX file by type, without reading them; None where there is no onnx-ir.

    Scales, zero points, positions and other constants are no weights: what has less than two axes, or is an integer of
    more than a byte, isn't counted.

    Raises:
        BundleError: It can't be read, or its inputs and outputs aren't those that are expected.
    """
    model = read_graph(graph, expected)
    if model is None:
        return None
    found: Counter[str] = Counter()
    elements = 0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or len(tensor.shape) < 2:
            continue
        if tensor.dtype.is_floating_point() or (tensor.dtype.is_integer() and tensor.dtype.bitwidth <= 8):
            found[tensor.dtype.name] += tensor.nbytes
            elements += tensor.size
    return GraphWeights(bytes=dict(found.most_common()), float16_bytes=2 * elements)


# The inspector's words for a type -> ours; the first that is found in 'Format/Datatype' counts.
_TYPES: tuple[tuple[str, str], ...] = (
    ("bfloat16|bf16", "BFLOAT16"),
    ("int4", "INT4"),
    ("int8", "INT8"),
    ("fp8|float8", "FLOAT8"),
    ("fp4|float4", "FLOAT4"),
    ("half|fp16|float16", "FLOAT16"),
    ("fp32|float32|float", "FLOAT"),
    ("int64", "INT64"),
    ("int32", "INT32"),
    ("bool", "BOOL"),
)


def read_inspector(text: str) -> list[EngineLayer]:
    """Return the layers from the JSON of ``IEngineInspector`` (``LayerInformationFormat.JSON``).

    Args:
        text: What ``get_engine_information`` returned. An engine that was built at the verbosity ``DETAILED`` says
            everything; one that wasn't, only names.

    Raises:
        BundleError: It isn't such JSON.

    Reference:
        NVIDIA TensorRT documentation, "Engine Inspector".
    """
    try:
        layers = json.loads(text)["Layers"]
        return [_layer(entry) for entry in layers]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(
            f"the engine inspector's JSON can't be read ({type(error).__name__}: {error}): expected a list 'Layers'"
        ) from error


def count_precisions(layers: list[EngineLayer]) -> dict[str, int]:
    """Return how many of the layers with weights compute in each type."""
    return dict(Counter(layer.precision for layer in layers if layer.weights is not None).most_common())


def inspect_engine(trt: ModuleType, plan: bytes | memoryview) -> list[EngineLayer] | None:
    """Deserialise an engine on its GPU and return its layers; None if this machine can't.

    Args:
        trt: ``tensorrt`` or ``tensorrt_rtx``.
        plan: The engine.
    """
    try:
        engine = start(trt, "Runtime", make_log(trt)).deserialize_cuda_engine(plan)
    except TargetError:
        return None
    if engine is None:
        return None
    return read_inspector(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))


def _layer(entry: Any) -> EngineLayer:
    if isinstance(entry, str):  # below the verbosity DETAILED a layer is its name
        return EngineLayer(name=entry, kind="unknown", nodes=(), inputs=(), outputs=(), weights=None, tactic=None)
    weights = entry.get("Weights")
    return EngineLayer(
        name=entry["Name"],
        kind=entry.get("LayerType", "unknown"),
        nodes=tuple(_nodes(entry.get("Metadata") or "")),
        inputs=_types(entry.get("Inputs", ())),
        outputs=_types(entry.get("Outputs", ())),
        weights=_type(weights["Type"]) if weights and weights.get("Count", 1) else None,
        tactic=entry.get("TacticName") or None,
    )


def _nodes(metadata: str) -> Iterator[str]:
    """Yield the names in ``[ONNX Layer: a]<record separator>[ONNX Layer: b]``."""
    for match in re.finditer(r"\[ONNX Layer: (.*?)\](?=\x1e|\[|$)", metadata):
        yield match[1]


def _types(tensors: Any) -> tuple[str, ...]:
    return tuple(_type(tensor.get("Format/Datatype") or tensor.get("Datatype") or "") for tensor in tensors)


def _type(words: str) -> str:
    return next((name for pattern, name in _TYPES if re.search(pattern, words, re.IGNORECASE)), "unknown")
