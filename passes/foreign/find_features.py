"""Find out what another exporter's vision tower hands over: which output, which layer, which tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from lmmprune.errors import InputError, suggestion
from lmmprune.passes.find.layers import Layer, find_layers
from lmmprune.passes.foreign.first_row import reads_first_row, tokens_of
from lmmprune.passes.graph.refusals import Refused
from lmmprune.passes.graph.shapes import reached, static_shape


@dataclass(frozen=True, kw_only=True)
class Features:
    """Where the visual tokens leave a tower.

    Attributes:
        output: The output that holds them, ``[B,T,C]`` or ``[B,N,C]``.
        layers: All layers of the graph, first to last.
        depth: V, the layers before the features.
        hidden: What layer V - 1 hands on, ``[B,T,C]``.
        moved: Whether another layer than the output's own was asked for.
        has_cls: Whether row 0 is a CLS token.
        grid: Patches, rows and columns.
        dropped: Other outputs that can't be kept -> why.
    """

    output: ir.Value
    layers: tuple[Layer, ...]
    depth: int
    hidden: ir.Value
    moved: bool
    has_cls: bool
    grid: tuple[int, int]
    dropped: Mapping[str, str]


def find_picture(model: ir.Model) -> ir.Value:
    """Return the one input of a graph, a picture ``[B,C,height,width]`` of floats.

    Raises:
        Refused: It has others, or none.
    """
    inputs = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    pictures = [v for v in inputs if v.shape is not None and len(v.shape) == 4 and _is_float(v)]
    shown = ", ".join(f"{v.name} {v.shape} {v.dtype}" for v in inputs)
    if len(pictures) != 1 or len(inputs) != 1:
        raise Refused(
            f"looked for one input, a picture [B,3,height,width] of floats, found: {shown or 'none'}:"
            " export the vision tower alone"
        )
    return pictures[0]


def behind_identity(value: ir.Value) -> ir.Value:
    """Return the value that a chain of Identity nodes copies."""
    node = value.producer()
    while node is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def find_grid(model: ir.Model) -> tuple[int, int]:
    """Return the rows and columns of patches that the patch embedding makes.

    Raises:
        Refused: There isn't exactly one convolution.
    """
    found = [node for node in model.graph if node.op_type == "Conv"]
    if len(found) != 1:
        raise Refused(
            f"looked for the one Conv that embeds the patches, found {len(found)}: give --grid, rows x columns"
        )
    rows, columns = static_shape(found[0].outputs[0])[2:]
    return rows, columns


def find_features(
    model: ir.Model, *, grid: tuple[int, int], output: str | None = None, layer: int | None = None
) -> Features:
    """Decide which tokens are the features.

    Args:
        model: A static graph with fused attention.
        grid: Patches, rows and columns.
        output: The output that holds them; None: the one behind all others that hold tokens.
        layer: Number of the hidden state as transformers counts them, 0 the embeddings, -1 behind the last layer; None:
            what the output holds.

    Raises:
        InputError: There is no such output or layer.
        Refused: No output holds tokens, several could, or they aren't the grid's.
    """
    layers = find_layers(model, "vision")
    patches = grid[0] * grid[1]
    holder = _holder(model, layers, patches, output)
    own = sum(holder in set(reached([entry.node.outputs[0]])) for entry in layers)
    depth = own if layer is None else depth_of(layer, len(layers))
    if layer is not None and not _only_norms_between(layers[own - 1].out, holder):
        if depth != own:
            raise Refused(
                f"--layer {layer}: more than a norm lies between the tower and '{holder.name}' (a projector?), which"
                f" reads layer {own}: leave --layer out, or export the tower alone"
            )
        layer = None
    hidden = layers[depth - 1].out
    if behind_identity(holder) is hidden:
        layer = None
    has_cls = _has_cls(model, static_shape(hidden)[1], patches)
    return Features(
        output=holder,
        layers=layers,
        depth=depth,
        hidden=hidden,
        moved=layer is not None,
        has_cls=has_cls,
        grid=grid,
        dropped=_dropped(model, holder, layers[depth:], static_shape(hidden)[1], has_cls),
    )


def _is_float(value: ir.Value) -> bool:
    return value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def _holder(model: ir.Model, layers: Sequence[Layer], patches: int, name: str | None) -> ir.Value:
    """Return the output that holds the features."""
    outputs = model.graph.outputs
    names = [str(value.name) for value in outputs]
    if name is not None and name not in names:
        raise InputError(f"--features {name}: the graph has no such output{suggestion(name, names)}")
    found = token_outputs(model, layers, patches)
    shown = ", ".join(f"{value.name} {value.shape}" for value in outputs)
    if name is not None:
        found = [value for value in found if value.name == name]
    last = [v for v in found if not any(other is not v and other in set(reached([v])) for other in found)]
    if not last:
        tokens = static_shape(layers[-1].q)[2]
        kept = "registers or a second class token can't be kept beside the patches"
        more = f" (its layers see {tokens} tokens; {kept})" if tokens > patches + 1 else ""
        what = "an output with tokens" if name is None else f"tokens in '{name}'"
        raise Refused(
            f"looked for {what}, [B,{patches},C] or [B,{patches + 1},C], behind the attention;"
            f" found: {shown}: give the --layer to hand out, such as -2, or the --grid{more}"
        )
    if len(last) > 1:
        several = ", ".join(str(value.name) for value in last)
        raise Refused(f"several outputs could hold the features: {several}: say which, with --features")
    return last[0]


def token_outputs(model: ir.Model, layers: Sequence[Layer], patches: int) -> list[ir.Value]:
    """Return the outputs that hold tokens which attention has seen, ``[B,N,C]`` or ``[B,1+N,C]``."""
    attended = set(reached([layers[0].node.outputs[0]]))
    return [v for v in model.graph.outputs if v in attended and tokens_of(v) in (patches, patches + 1)]


def depth_of(layer: int, count: int) -> int:
    """Return how many layers lie before a hidden state.

    Raises:
        InputError: There is none of that number.
    """
    depth = layer if layer >= 0 else count + 1 + layer
    if not 1 <= depth <= count:
        raise InputError(f"--layer {layer}: the graph has {count} layers; give 1..{count}, or -{count}..-1")
    return depth


def _only_norms_between(hidden: ir.Value, output: ir.Value) -> bool:
    value = behind_identity(output)
    while value is not hidden:
        node = value.producer()
        if node is None or node.op_type != "LayerNormalization" or node.inputs[0] is None:
            return False
        value = behind_identity(node.inputs[0])
    return True


def _has_cls(model: ir.Model, tokens: int, patches: int) -> bool:
    """Return whether the tower puts one token before its patches."""
    if tokens == patches:
        return False
    check_count(tokens, patches)
    for node in model.graph:
        lengths = [tokens_of(value) for value in node.inputs if value is not None]
        if (
            node.op_type == "Concat"
            and lengths in ([1, patches], [patches, 1])
            and tokens_of(node.outputs[0]) == tokens
        ):
            if lengths[0] == 1:
                return True
            raise Refused(f"'{node.name}' puts the additional token behind the patches: expected CLS at row 0")
    raise Refused(
        f"looked for the Concat of CLS with {patches} patches, found none: which of {tokens} tokens is CLS isn't known"
    )


def check_count(tokens: int, patches: int) -> None:
    """Check how many tokens a tower has.

    Raises:
        Refused: They are neither the patches nor the patches and CLS.
    """
    if tokens not in (patches, patches + 1):
        raise Refused(
            f"the tower has {tokens} tokens on a grid of {patches} patches: expected as many, or one more for CLS;"
            " registers or a second class token can't be kept beside the patches (another grid: give --grid)"
        )


def _dropped(
    model: ir.Model, features: ir.Value, behind: Sequence[Layer], tokens: int, has_cls: bool
) -> dict[str, str]:
    """Return the outputs that can't be kept, and why."""
    late = set(reached([layer.node.outputs[0] for layer in behind]))
    found = {}
    for value in model.graph.outputs:
        if value is features:
            continue
        if value in late:
            found[str(value.name)] = "it is computed behind the feature layer"
        elif not has_cls or not reads_first_row(value, tokens):
            found[str(value.name)] = "it reads tokens that are removed"
    return found
