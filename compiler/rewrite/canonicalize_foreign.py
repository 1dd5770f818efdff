"""Bring a vision graph that another exporter made into canonical form: static, opset 23, one node per attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as common

from lmmprune.compiler.onnx_files.load_onnx import load_onnx
from lmmprune.errors import GraphRefusal, InputError, below
from lmmprune.lazy import lazy, numbers
from lmmprune.models.canonicalize import canonicalize
from lmmprune.names import KEPT
from lmmprune.passes.foreign.drop_open_masks import DropOpenMasks
from lmmprune.passes.foreign.find_features import behind_identity, find_picture
from lmmprune.passes.foreign.fold_shapes import FoldShapes
from lmmprune.passes.foreign.fuse_attention import FuseAttention
from lmmprune.passes.foreign.fuse_layer_norm import FuseLayerNorm
from lmmprune.passes.foreign.lower_einsum import LowerEinsum
from lmmprune.passes.foreign.lower_gemm import LowerGemm
from lmmprune.passes.foreign.move_weights import MoveWeights
from lmmprune.passes.foreign.put_batch_first import PutBatchFirst
from lmmprune.passes.foreign.widen_float import WidenFloat
from lmmprune.passes.graph.refusals import Refused
from lmmprune.passes.lower.convert_opset import ConvertOpset

OPSET, _OLDEST = 23, 13  # Softmax means something else before 13
_IR_VERSION = 10
_FLOATS = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
}
# Entries up to which a float is a constant of the arithmetic (a scale, an epsilon), not a weight.
_CONSTANT = 16


@dataclass(frozen=True, kw_only=True)
class Canonicalized:
    """A graph in canonical form, and what it was before.

    Attributes:
        model: Static, float32, opset 23, its weights bound lazily.
        dtype: Floating-point type of the weights in the file.
        picture_dtype: Of its input.
        batch: B.
        opset: Of the file.
        nodes: Nodes of the file.
        copies: Outputs that are gone because they only repeat another one -> why.
    """

    model: ir.Model
    dtype: str
    picture_dtype: str
    batch: int
    opset: int
    nodes: int
    copies: Mapping[str, str]


def canonicalize_foreign(
    path: Path, *, batch: int | None = None, image_size: tuple[int, int] | None = None
) -> Canonicalized:
    """Open a vision graph and bring it into canonical form; no weight is read.

    Args:
        path: The file.
        batch: Pictures per call, where the graph leaves that open; None: 1.
        image_size: Height and width in pixels, where the graph leaves them open.

    Raises:
        InputError: It isn't ONNX, or a size is missing or isn't the graph's.
        GraphRefusal: It isn't a vision tower, or one of its parts can't be said in canonical form.
    """
    model = load_onnx(path)
    _check(model)
    with below(f"working on the nodes of '{path}' with ONNX's own tools", "export it again", kind=InputError):
        return _raise(model, batch, image_size)


def _raise(model: ir.Model, batch: int | None, image_size: tuple[int, int] | None) -> Canonicalized:
    opset, nodes = model.graph.opset_imports[""], sum(1 for _ in model.graph)
    common.InlinePass()(model)
    # The passes name what they write after the nodes.
    common.NameFixPass()(model)
    common.RemoveInitializersFromInputsPass()(model)
    # From here on a constant is an initializer, whichever way it was written.
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    dtype = _bind(model)
    picture = find_picture(model)
    shape = _picture_shape(model, picture, batch, image_size)
    picture_dtype = _FLOATS[picture.dtype or ir.DataType.FLOAT]
    try:
        FoldShapes(shapes={str(picture.name): shape})(model)
    except GraphRefusal as error:
        raise Refused(
            f"{error} (with pictures of {shape[2]} x {shape[3]} pixels: is that the tower's size?)"
        ) from error
    _check_flow(model)
    WidenFloat()(model)
    ConvertOpset(version=OPSET)(model)
    LowerEinsum()(model)
    LowerGemm()(model)
    MoveWeights()(model)
    model.ir_version = max(model.ir_version, _IR_VERSION)
    copies = _drop_copies(model)
    names = [str(value.name) for value in model.graph.outputs]
    canonicalize(model)
    if names != [str(value.name) for value in model.graph.outputs]:
        raise Refused(f"two of the outputs {', '.join(names)} are the same computation: remove one from the graph")
    FuseLayerNorm()(model)
    DropOpenMasks()(model)
    FuseAttention(batch=shape[0])(model)
    PutBatchFirst(batch=shape[0])(model)
    return Canonicalized(
        model=model, dtype=dtype, picture_dtype=picture_dtype, batch=shape[0], opset=opset, nodes=nodes, copies=copies
    )


def _check(model: ir.Model) -> None:
    """Refuse what no pass would understand."""
    opset = model.graph.opset_imports.get("")
    if opset is None or opset < _OLDEST:
        raise Refused(f"the graph has opset {opset}: expected {_OLDEST} or newer; export it again at opset 17")
    if any(value.name == KEPT for value in model.graph.outputs):
        raise Refused(f"the graph already has an output '{KEPT}': it is pruned; start from the unpruned graph")
    for node in model.graph:
        if node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear", "DequantizeLinear"):
            raise Refused(f"'{node.name}' quantizes: prune the floating-point graph, then quantize")
        known = node.domain in ("", "ai.onnx") or node.op_identifier() in model.functions
        if not known:
            raise Refused(
                f"'{node.name}' is of type {node.op_type} of '{node.domain}', expected ONNX's own operators: export"
                " without a runtime's graph optimization"
            )


def _check_flow(model: ir.Model) -> None:
    """Refuse branches and loops that known shapes didn't decide."""
    for node in model.graph:
        for attribute in node.attributes.values():
            if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
                raise Refused(
                    f"'{node.name}' ({node.op_type}) is control flow, expected a graph without: export it again"
                )


def _drop_copies(model: ir.Model) -> dict[str, str]:
    """Drop outputs that are another output under a second name: one value has one name in ONNX."""
    seen: dict[ir.Value, str] = {}
    found = {}
    for value in list(model.graph.outputs):
        root = behind_identity(value)
        if root in seen:
            found[str(value.name)] = f"it is a copy of '{seen[root]}'"
            model.graph.outputs.remove(value)
        seen.setdefault(root, str(value.name))
    return found


def _bind(model: ir.Model) -> str:
    """Bind every weight to its place in the file; return their type."""
    sizes: dict[ir.DataType, int] = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None:
            raise Refused(f"the initializer '{name}' has no values")
        value.shape, value.type = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
        if tensor.dtype.is_floating_point() and tensor.size > _CONSTANT:
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size
            value.const_value = lazy(tensor.numpy, dtype=tensor.dtype, shape=numbers(value.shape), name=name)
        else:
            value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name)
    largest = max(sizes, key=lambda dtype: sizes[dtype], default=ir.DataType.FLOAT)
    if largest not in _FLOATS:
        raise Refused(f"the weights are {largest}: expected {', '.join(_FLOATS.values())}")
    return _FLOATS[largest]


def _picture_shape(
    model: ir.Model, picture: ir.Value, batch: int | None, image_size: tuple[int, int] | None
) -> tuple[int, int, int, int]:
    """Return the shape of the picture: the graph's own numbers, and what was given for its symbols."""
    assert picture.shape is not None
    have = [dim if isinstance(dim, int) else None for dim in picture.shape]
    if have[0] is not None and batch not in (None, have[0]):
        raise InputError(f"--batch {batch}: the graph was exported for {have[0]}; leave it out, or export it again")
    size = (have[2], have[3])
    if None in size and image_size is None:
        raise InputError(
            f"the input '{picture.name}' {picture.shape} leaves the size of the picture open:"
            " give --image-size, in pixels, such as 336"
        )
    for name, found, given in zip(("high", "wide"), size, image_size or (None, None), strict=True):
        if found is not None and given not in (None, found):
            raise InputError(f"--image-size: {given} pixels {name}, but the graph was exported for {found}")
    height, width = (found or given for found, given in zip(size, image_size or size, strict=True))
    assert height is not None
    assert width is not None
    return have[0] or batch or 1, have[1] or next(_channels(model), 3), height, width


def _channels(model: ir.Model) -> Iterator[int]:
    """Yield the channels that convolutions read, in the graph's order."""
    for node in model.graph:
        weight = node.inputs[1] if node.op_type == "Conv" else None
        if weight is not None and weight.shape is not None:
            yield numbers(weight.shape)[1] * node.attributes.get_int("group", 1)
