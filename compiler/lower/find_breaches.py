"""Find the breaches of each rule of ``compiler/lower/parser_rules.py`` in a graph."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from lmmprune.compiler.lower.shape_tensors import read_as_shapes, source_of_values
from lmmprune.compiler.targets import operators
from lmmprune.compiler.targets.target import Target
from lmmprune.lazy import is_lazy, numbers
from lmmprune.stored import Array

Findings = Iterator[tuple[ir.Node | None, str]]

_FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
_TYPES = _FLOATS | {ir.DataType.INT64, ir.DataType.INT32, ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.BOOL}
_DATA_DEPENDENT = {"NonZero", "Unique", "Compress", "NonMaxSuppression", "StringSplit"}
_SCATTERS = {"Scatter", "ScatterElements", "ScatterND"}


def _each(find: Callable[[ir.Node, tuple[int, int]], Iterator[str]]) -> Callable[[ir.Model, Target], Findings]:
    """Make a finder for graphs of one for a node and the parser's version."""

    def found(model: ir.Model, target: Target) -> Findings:
        assert target.parser is not None
        for node in model.graph:
            for what in find(node, target.parser):
                yield node, what

    found.__doc__ = find.__doc__
    return found


def opset(model: ir.Model, target: Target) -> Findings:
    """Find an opset that is too new."""
    version = model.graph.opset_imports.get("", 0)
    if version > target.max_opset:
        yield None, f"the graph is written in opset {version}, the parser reads up to {target.max_opset}"


def stream_type(model: ir.Model, target: Target) -> Findings:
    """Find inputs and outputs of a floating-point type that the target doesn't take."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.dtype in _FLOATS and value.dtype.name.lower() not in _names(target):
            yield (
                value.producer(),
                f"'{value.name}' is {value.dtype.name.lower()}, taken are {', '.join(target.dtypes)}",
            )


def _names(target: Target) -> set[str]:
    return {"float" if name == "float32" else name for name in target.dtypes}


@_each
def operator(node: ir.Node, version: tuple[int, int]) -> Iterator[str]:
    """Find operators that the parser doesn't read."""
    if node.domain not in ("", "ai.onnx"):
        yield f"operators of '{node.domain}' need a plug-in"
    elif node.op_type not in operators.operators(version) | _SCATTERS | _DATA_DEPENDENT:
        yield f"the parser of TensorRT {version[0]}.{version[1]} doesn't read {node.op_type}"


@_each
def value_type(node: ir.Node, version: tuple[int, int]) -> Iterator[str]:
    """Find values of types that don't exist in TensorRT."""
    for value in node.outputs:
        if value.dtype is not None and value.dtype not in _TYPES:
            yield f"'{value.name}' is {value.dtype.name.lower()}"


@_each
def float_only(node: ir.Node, version: tuple[int, int]) -> Iterator[str]:
    """Find integers where the parser reads floating point only."""
    dtype = node.inputs[0].dtype if node.inputs and node.inputs[0] is not None else None
    if node.op_type in operators.FLOAT_ONLY and dtype is not None and dtype not in _FLOATS:
        yield f"{node.op_type} reads {dtype.name.lower()}"


@_each
def too_many_dimensions(node: ir.Node, version: tuple[int, int]) -> Iterator[str]:
    """Find values of too high a rank."""
    for value in node.outputs:
        if value.shape is not None and len(value.shape) > operators.MOST_DIMENSIONS:
            yield f"'{value.name}' has {len(value.shape)} dimensions"


@_each
def not_constant(node: ir.Node, version: tuple[int, int]) -> Iterator[str]:
    """Find computed inputs where the parser wants constants."""
    until, late = operators.CONSTANT_INPUTS_UNTIL.get(node.op_type, ((0, 0), ()))
    for index in (*operators.CONSTANT_INPUTS.get(node.op_type, ()), *(late if version < until else ())):
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None and constant(value) is None:
            yield f"input {index}, '{value.name}', is computed"


@_each
def sorts_too_many(node: ir.Node, version: tuple[int, int]) -> Iterator[str]:
    """Find a TopK of too many."""
    count = constant(node.inputs[1]) if node.op_type == "TopK" else None
    if count is not None and int(count.ravel()[0]) > operators.MOST_SORTED:
        yield f"k = {int(count.ravel()[0])}, at most {operators.MOST_SORTED} are sorted"


@_each
def data_dependent(node: ir.Node, version: tuple[int, int]) -> Iterator[str]:
    """Find operators whose output is as long as values say."""
    if node.op_type in _DATA_DEPENDENT:
        yield f"the length of what {node.op_type} gives depends on values"


@_each
def shape_from_data(node: ir.Node, version: tuple[int, int]) -> Iterator[str]:
    """Find shapes and bounds that are computed from values of tensors."""
    for value in read_as_shapes(node):
        source = source_of_values(value)
        if source is not None:
            yield f"'{value.name}' is computed from the values of {source}"


@_each
def scatters_twice(node: ir.Node, version: tuple[int, int]) -> Iterator[str]:
    """Find scatters whose targets are computed, or constants that repeat."""
    if node.op_type not in _SCATTERS:
        return
    reduction = node.attributes.get_string("reduction", "none")
    indices = constant(node.inputs[1])
    if indices is None:
        yield "its indices are computed: they may name one place twice"
    elif reduction == "none" and node.op_type == "ScatterND":
        rows = indices.reshape(-1, indices.shape[-1])
        if len(np.unique(rows, axis=0)) < len(rows):
            yield "its indices name one place twice"
    elif reduction == "none":
        axis = node.attributes.get_int("axis", 0)
        ordered = np.sort(indices, axis=axis)
        if (np.diff(ordered, axis=axis) == 0).any():
            yield "its indices name one place twice"


def attention_form(model: ir.Model, target: Target) -> Findings:
    """Find forms of Attention that the parser reads wrongly or not at all."""
    for node in model.graph:
        if node.op_type == "Attention":
            for what in (*_unread_attention(node), *_misaligned(node, target)):
                yield node, what


def _unread_attention(node: ir.Node) -> Iterator[str]:
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        yield "more than its first output is used"
    if any(value is not None for value in node.inputs[4:6]):
        yield "it joins a cache itself"
    if node.attributes.get_float("softcap", 0.0):
        yield "it has a softcap"


def _misaligned(node: ir.Node, target: Target) -> Iterator[str]:
    if not node.attributes.get_int("is_causal", 0):
        return
    queries, keys = (_sequence(value) for value in node.inputs[:2])
    # Where the keys come in joined with a cache, the upper left is what ONNX means, too. But it hides the cache from
    # fewer queries: whoever set the flag there meant the other alignment (docs/reference/targets.md).
    if target.causal == "mask":
        yield "is_causal is set, the target takes an explicit mask only"
    elif queries is None or queries != keys:
        yield (
            f"is_causal is set where {queries or 'unknown'} queries read {keys or 'unknown'} keys, which the target "
            f"aligns at the {target.causal.replace('_', ' ')}"
        )


def _sequence(value: ir.Value | None) -> int | str | None:
    """Return the length of ``[B,H,S,D]`` or ``[B,S,HD]``, a number or a symbol (one symbol is one length)."""
    if value is None or value.shape is None or len(value.shape) < 3:
        return None
    size = value.shape[-2]
    return size if isinstance(size, int) else size.value


def int8(model: ir.Model, target: Target) -> Findings:
    """Find Q/DQ pairs that break the target's scheme."""
    from lmmprune.passes.int8.lint_qdq import RULES, lint_qdq, scheme_of_weights

    nodes = {str(node.name or node.outputs[0].name): node for node in model.graph}
    # Without QuantizeLinear only weights are quantized, which every target takes.
    quantized = any(node.op_type == "QuantizeLinear" for node in model.graph)
    scheme = target.int8 if quantized else scheme_of_weights(model)
    with _unread_scales(model):
        findings = lint_qdq(model, scheme)
    for finding in findings:
        yield nodes.get(finding.node), f"{finding.found}; {RULES[finding.rule].says}"


@contextlib.contextmanager
def _unread_scales(model: ir.Model) -> Iterator[None]:
    """Let scales that ``InsertQdq`` derives from weights pass for ones: looking at them would read every weight."""
    pairs = (node for node in model.graph if node.op_type in ("QuantizeLinear", "DequantizeLinear"))
    hidden = {scale: scale.const_value for node in pairs if (scale := node.inputs[1]) is not None and is_lazy(scale)}
    for value in hidden:
        value.const_value = ir.Tensor(np.ones(numbers(value.shape), np.float32))
    try:
        yield
    finally:
        for value, tensor in hidden.items():
            value.const_value = tensor


def constant(value: ir.Value | None) -> Array | None:
    """Return the numbers of a constant, None if it is computed (or a graph input)."""
    tensor = None if value is None or value.is_graph_input() else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()
