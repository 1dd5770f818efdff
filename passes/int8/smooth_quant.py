"""Move outliers of activations into the weights that read them, without changing the function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lmmprune.lazy import derive, numbers
from lmmprune.passes.find.blocks import weighted
from lmmprune.passes.graph.builder import SCORE
from lmmprune.passes.graph.graph_pass import GraphPass
from lmmprune.passes.graph.refusals import Broken, Refused
from lmmprune.stored import Array

_NORMS = {"LayerNormalization", "RMSNormalization"}
_DONE = "lmmprune.smoothed"


@dataclass(frozen=True, kw_only=True)
class Smoothable:
    """An activation whose channels can be divided by factors where it is made, and its readers multiplied.

    Attributes:
        value: The activation ``[..,T,C]``.
        made_by: The norm that the division is folded into.
        readers: MatMul nodes with a weight ``[C,N]``; nothing else reads it.
    """

    value: ir.Value
    made_by: ir.Node
    readers: tuple[ir.Node, ...]


@dataclass(frozen=True, kw_only=True)
class SmoothQuant(GraphPass):
    """Divide the channels of activations by factors and multiply the rows of the weights that read them.

    Before: ``norm(x; g, b) -> MatMul(w)``
    After: ``norm(x; g/s, b/s) -> MatMul(s w)``

    No node is added. Inputs of a down projection could be smoothed too, by folding into ``up``; they aren't: their
    outliers are rare (docs/results/activation_ranges.md), and a channel that calibration saw small would be clipped on
    others.

    Attributes:
        factors: s ``[C]`` of every activation to smooth, by its name; positive.

    Reference:
        Xiao et al. 2023, SmoothQuant, arXiv 2211.10438, eq. 3 and 4.
    """

    factors: Mapping[str, Array]

    def requires(self, model: ir.Model) -> None:
        """Check that every activation can be smoothed and has a positive factor per channel."""
        known = {str(group.value.name): group for group in find_smoothable(model)}
        for name, factor in self.factors.items():
            if name not in known:
                raise Refused(f"'{name}' can't be smoothed: expected the output of a norm that only weights read")
            channels = numbers(known[name].readers[0].inputs[1].shape)[0]  # type: ignore[union-attr]  # a weight
            if factor.shape != (channels,) or not (np.isfinite(factor) & (factor > 0)).all():
                raise Refused(
                    f"the factors of '{name}' must be {channels} positive numbers, found shape {factor.shape}"
                )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the weights; they are computed when they are written."""
        groups = {str(group.value.name): group for group in find_smoothable(model)}
        for name, factor in self.factors.items():
            group = groups[name]
            group.made_by.metadata_props[_DONE] = "1"
            exact = factor.astype(np.float32)
            for index in range(1, len(group.made_by.inputs)):  # gain, and the bias of a LayerNormalization
                if group.made_by.inputs[index] is not None:
                    _scale(model, group.made_by, index, 1 / exact)
            for reader in group.readers:
                _scale(model, reader, 1, exact[:, None])
        return ir.passes.PassResult(model, modified=bool(self.factors))

    def ensures(self, model: ir.Model) -> None:
        """Check that nothing is left to be smoothed again."""
        for group in find_smoothable(model):
            if group.value.name in self.factors:
                raise Broken(f"'{group.value.name}' isn't marked as smoothed")


def find_smoothable(model: ir.Model) -> list[Smoothable]:
    """Return what can be smoothed: outputs of norms that are read by weights alone.

    A norm whose output is also a graph output, or feeds a score, is left out: its values must not change. So is what
    was smoothed already.
    """
    nodes = set(weighted(model))
    found = []
    for node in model.graph:
        if node.op_type not in _NORMS or SCORE in node.metadata_props or _DONE in node.metadata_props:
            continue
        value = node.outputs[0]
        readers = tuple(user for user, _ in value.uses())
        if value.is_graph_output() or not readers:
            continue
        if all(user in nodes and user.op_type == "MatMul" and user.inputs[0] is value for user in readers):
            found.append(Smoothable(value=value, made_by=node, readers=readers))
    return found


def _scale(model: ir.Model, node: ir.Node, index: int, factor: Array) -> None:
    """Give one node's input a copy of its own that is multiplied by a factor."""
    weight = node.inputs[index]
    assert weight is not None
    name = f"{weight.name}/smooth"
    while name in model.graph.initializers:  # one weight, smoothed by two of its readers, or twice
        name += "'"
    new = derive(
        weight,
        lambda array: array.astype(np.float32) * factor,
        dtype=ir.DataType.FLOAT,
        shape=numbers(weight.shape),
        name=name,
    )
    model.graph.register_initializer(new)
    node.replace_input_with(index, new)
    if not weight.uses():
        del model.graph.initializers[str(weight.name)]
