"""The rules of TensorRT's parser and builder as data: what must hold, who says so, and what to do otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from lmmprune.compiler.lower import find_breaches as finders
from lmmprune.compiler.targets.target import Target


@dataclass(frozen=True, kw_only=True)
class ParserRule:
    """What must hold in a graph for a target with a parser.

    Attributes:
        says: The rule in one line.
        source: Who says so: *doc* the vendor's documents or headers, *seen* tried here, *believed* not checked.
        advice: What to do where it is broken.
        find: Yields a node (None: the whole graph) and what is there, for every breach.
    """

    says: str
    source: str
    advice: str
    find: Callable[[ir.Model, Target], finders.Findings]


RULES: Mapping[str, ParserRule] = {
    "opset": ParserRule(
        says="the opset is one that the parser reads",
        source="doc: the ONNX version of each release in onnx-tensorrt's changelog",
        advice="export for this target instead of another",
        find=finders.opset,
    ),
    "operator": ParserRule(
        says="every operator is one that the parser's version reads",
        source="doc: onnx-tensorrt docs/operators.md and docs/Changelog.md",
        advice="choose a newer target, or lower the operator to primitives",
        find=finders.operator,
    ),
    "type": ParserRule(
        says="every value has a type that TensorRT knows",
        source="doc: nvinfer1::DataType in NvInferRuntimeBase.h",
        advice="cast it to float32, float16, int32 or int64",
        find=finders.value_type,
    ),
    "stream": ParserRule(
        says="the graph's floating-point inputs and outputs have a type that the target takes",
        source="the target's row in compiler/targets/targets.py",
        advice="export with another --dtype",
        find=finders.stream_type,
    ),
    "float-only": ParserRule(
        says="reductions, products and sorts read floating point",
        source="doc: types in onnx-tensorrt docs/operators.md",
        advice="cast to float32 before it and back behind it",
        find=finders.float_only,
    ),
    "rank": ParserRule(
        says="no value has more than eight dimensions",
        source="doc: nvinfer1::Dims::MAX_DIMS",
        advice="merge dimensions with a Reshape",
        find=finders.too_many_dimensions,
    ),
    "constant": ParserRule(
        says="axes, and the k of a TopK, are constants",
        source="doc: 'must be an initializer' in onnx-tensorrt docs/operators.md",
        advice="fold it: a schedule's counts are known at export",
        find=finders.not_constant,
    ),
    "top-k": ParserRule(
        says="TopK keeps at most 3840",
        source="doc: ITopKLayer in NvInfer.h, the largest k",
        advice="keep fewer tokens at this site, or split the image into tiles",
        find=finders.sorts_too_many,
    ),
    "data-dependent": ParserRule(
        says="no operator's output shape depends on values",
        source="believed: such shapes are synchronized with the host and can't be in a CUDA graph",
        advice="use TopK with a fixed count and Gather",
        find=finders.data_dependent,
    ),
    "shape-from-data": ParserRule(
        says="shapes, ranges and slice bounds are computed from shapes and constants only",
        source="doc: 'Execution tensors and shape tensors', TensorRT developer guide",
        advice="compute it from Shape, or fix it at export",
        find=finders.shape_from_data,
    ),
    "scatter": ParserRule(
        says="no scatter can write one place twice",
        source="doc: IScatterLayer in NvInfer.h leaves repeated targets undefined",
        advice="write a one-hot MatMul, or constant indices that differ",
        find=finders.scatters_twice,
    ),
    "attention": ParserRule(
        says="Attention has one output, no cache of its own, no softcap; is_causal only for as many keys as queries",
        source="seen: TensorRT-RTX 1.7.1 refuses more outputs and past inputs; is_causal becomes UPPER_LEFT",
        advice="join the cache before the node and give an explicit mask",
        find=finders.attention_form,
    ),
    "int8": ParserRule(
        says="Q/DQ pairs are symmetric, per tensor on activations, and next to their product",
        source="doc: 'Working with quantized types'; onnx-tensorrt docs/operators.md; NVIDIA/TensorRT issue 4832",
        advice="export with --int8 for this target",
        find=finders.int8,
    ),
}
