"""Bring a tower that another exporter made into the form of the canonical vision graph, and its output back."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as common

from lmmprune.names import IMAGE_FEATURES, NEXT_LAYER, PASS
from lmmprune.passes.foreign.find_features import Features, find_features
from lmmprune.passes.graph.builder import Builder
from lmmprune.passes.graph.graph_pass import GraphPass
from lmmprune.passes.graph.refusals import Broken, Refused
from lmmprune.passes.graph.shapes import infer_shapes, reached, static_shape

_PREFIX, _PASS = "lmmprune/features", "expose_patches"
# Between the two passes: what the output is computed from, the CLS row, and the output itself.
_TOKENS, _CLS, _OUTPUT = "lmmprune.tokens", "lmmprune.cls", "lmmprune.output"


@dataclass(frozen=True, kw_only=True)
class ExposePatches(GraphPass):
    """Make the patches at the feature layer an output ``image_features``, as in the canonical vision graph.

    Before: ``hidden [B,T,C] -> ... -> last_hidden_state``, other outputs
    After: with CLS ``hidden -> Slice 1.. -> image_features [B,N,C]`` beside the output itself, else the output under
    that name. Outputs that read tokens are dropped (see ``find_features``), and so is what is computed for them alone.

    Attributes:
        output: Output that holds the features.
        layer: Hidden state that it shall hold instead; None: as it is.
        grid: Patches, rows and columns.
        next_layer: Whether the layer behind the features stays, as output ``next_layer_features``.
    """

    output: str
    layer: int | None
    grid: tuple[int, int]
    next_layer: bool = False

    def requires(self, model: ir.Model) -> None:
        """Check that there are features, and a layer behind them if one is needed."""
        if _exposed(model):
            return
        found = self._find(model)
        if self.next_layer and len(found.layers) == found.depth:
            raise Refused(
                f"the method reads the encoder layer behind the features, and '{self.output}' is what the last one"
                f" (of {found.depth}) makes: give --layer -2, as LLaVA reads its tower"
            )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite."""
        if _exposed(model):
            return ir.passes.PassResult(model, modified=False)
        found, graph = self._find(model), model.graph
        for value in [value for value in graph.outputs if value.name in found.dropped]:
            graph.outputs.remove(value)
        b = Builder(_PREFIX, score=False, about={PASS: _PASS})
        if found.has_cls and static_shape(found.output)[1] == static_shape(found.hidden)[1]:
            _split(graph, b, found)
        else:
            _rename(graph, b, found)
        if self.next_layer:
            _add_output(graph, _copy(b, found.layers[found.depth].out), NEXT_LAYER)
        b.append_to(graph)
        common.RemoveUnusedNodesPass()(model)
        common.TopologicalSortPass()(model)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Check the output."""
        if not _exposed(model):
            raise Broken(f"no output '{IMAGE_FEATURES}' was made of '{self.output}'")

    def _find(self, model: ir.Model) -> Features:
        return find_features(model, grid=self.grid, output=self.output, layer=self.layer)


def _split(graph: ir.Graph, b: Builder, found: Features) -> None:
    """Give the patches and CLS outputs of their own; what is behind them goes on reading all tokens."""
    hidden, end = found.hidden, found.output
    users = list(hidden.uses())
    tokens = _copy(b, hidden)
    tokens.name = _TOKENS
    if found.moved or end is hidden:
        end = _replace_output(graph, b, found.output, tokens)
    else:
        for node, index in users:
            if end in set(reached(node.outputs)):
                node.replace_input_with(index, tokens)
    end.name = _OUTPUT
    _add_output(graph, _copy(b, _rows(b, hidden, 1, static_shape(hidden)[1])), IMAGE_FEATURES)
    _add_output(graph, _rows(b, hidden, 0, 1), _CLS)


def _rename(graph: ir.Graph, b: Builder, found: Features) -> None:
    """Let the output itself be the features; they are computed from the tower's last tokens by at least one node."""
    source = found.hidden if found.moved else found.output
    _replace_output(graph, b, found.output, source).name = IMAGE_FEATURES


def _replace_output(graph: ir.Graph, b: Builder, output: ir.Value, source: ir.Value) -> ir.Value:
    """Put a copy of a value in an output's place, under no name yet."""
    new = _copy(b, source)
    graph.outputs[graph.outputs.index(output)] = new
    output.name = f"{_PREFIX}/{output.name}"
    return new


def _add_output(graph: ir.Graph, value: ir.Value, name: str) -> None:
    value.name = name
    graph.outputs.append(value)


def _copy(b: Builder, value: ir.Value) -> ir.Value:
    new = b.op("Identity", value)
    new.shape, new.type = value.shape, value.type
    return new


def _rows(b: Builder, value: ir.Value, begin: int, end: int) -> ir.Value:
    """Return some tokens of ``[B,T,C]``."""
    batch, _, channels = static_shape(value)
    new = b.op("Slice", value, [begin], [end], [1])
    new.shape, new.type = ir.Shape([batch, end - begin, channels]), value.type
    return new


@dataclass(frozen=True, kw_only=True)
class JoinTokens(GraphPass):
    """Give the output of a tower its name and form back.

    Before: ``image_features [B,K,C]``, and beside it the CLS row and the output of all tokens
    After: ``Concat(CLS, image_features) [B,1+K,C] -> ... -> last_hidden_state``

    Attributes:
        output: Its name.
    """

    output: str

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite."""
        graph = model.graph
        named = {value.name: value for value in graph.outputs}
        features = named.get(IMAGE_FEATURES)
        if features is None or (_OUTPUT not in named and self.output == IMAGE_FEATURES):
            return ir.passes.PassResult(model, modified=False)
        stale = []
        if _OUTPUT in named:
            b = Builder(_PREFIX, score=False, about={PASS: _PASS})
            joined = b.op("Concat", named[_CLS], features, axis=1)
            tokens = next(node for node in graph if node.outputs[0].name == _TOKENS)
            tokens.replace_input_with(0, joined)
            b.append_to(graph)
            for value in (features, named[_CLS]):
                graph.outputs.remove(value)
                value.name = f"{value.name}.kept"
            named[_OUTPUT].name = self.output
            stale = [tokens.outputs[0]]
        else:
            features.name = self.output
        common.TopologicalSortPass()(model)
        infer_shapes(model, stale=stale)
        common.IdentityEliminationPass()(model)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Check the name."""
        if self.output not in [value.name for value in model.graph.outputs]:
            raise Broken(f"the graph has no output '{self.output}' after its tokens were joined")


def _exposed(model: ir.Model) -> bool:
    return any(node.metadata_props.get(PASS) == _PASS for node in model.graph)
