"""Split a vision graph at the selection: one encoder that ranks the patches, and a small graph per token count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lmmprune.names import DYNAMIC_COUNT, KEPT, METHOD, NEXT_LAYER, PASS, PATCHES, RANKING, SITE
from lmmprune.passes.find.anchors import find_vision_anchors
from lmmprune.passes.find.sites import VISION_OUTPUT
from lmmprune.passes.graph.builder import Builder
from lmmprune.passes.graph.graph_pass import GraphPass
from lmmprune.passes.graph.refusals import Refused
from lmmprune.passes.graph.shapes import infer_shapes, static_shape
from lmmprune.passes.reduce.insert_separators import insert_separators, replace_features, separated_features
from lmmprune.passes.reduce.returned import check_returned
from lmmprune.passes.reduce.rules import Reduce, ReductionRule, ascending, top
from lmmprune.passes.reduce.site_context import SiteContext, gather_tokens
from lmmprune.passes.reduce.vision_cuts import vision_output


class Ranking(Protocol):
    """What is asked of a method: a rule at the vision output, and how many tokens it would keep by itself."""

    name: ClassVar[str]

    @property
    def counts_itself(self) -> bool:
        """Whether it has a count of its own."""

    def count(self, at: SiteContext) -> ir.Value:
        """Return that count, int64 ``[B]``."""

    def rule_at_output(self) -> ReductionRule:
        """Return the rule at the vision output."""


@dataclass(frozen=True, kw_only=True)
class CountTokens(GraphPass):
    """Let the encoder say how many patches the method would keep of a picture.

    After: a further output ``dynamic_count [B]`` int64, 1..N
    """

    method: Ranking
    grid: tuple[int, int]

    def requires(self, model: ir.Model) -> None:
        """Check that the method has a count of its own."""
        if not self.method.counts_itself:
            raise Refused(f"method '{self.method.name}' has no count of its own for a picture: give a number")
        find_vision_anchors(model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Write the count."""
        b = Builder(f"lmmprune/{self.method.name}/{DYNAMIC_COUNT}", about={METHOD: self.method.name})
        anchors = find_vision_anchors(model)
        at = vision_output(b, anchors, self.grid)
        count = self.method.count(at)
        if anchors.separators:
            count = b.op("Add", count, np.int64(anchors.separators))
        _output(model, b, {DYNAMIC_COUNT: (count, (at.batch,))})
        infer_shapes(model)
        check_returned(model)
        return ir.passes.PassResult(model, modified=True)


def split_vision(
    model: ir.Model, method: Ranking, grid: tuple[int, int], counts: Sequence[int]
) -> tuple[ir.Model, dict[int, ir.Model]]:
    """Return the encoder, and a graph per token count; the model itself stays as it is.

    Before: ``pixel_values -> encoder -> patches [B,N,C] -> projector -> image_features [B,N,C']``
    After: ``pixel_values -> encoder -> patches [B,N,C], ranking [B,N], dynamic_count [B]`` and per count K
    ``patches, ranking -> Gather -> projector -> image_features [B,K,C'], kept_indices [B,K]``

    Raises:
        Refused: The method doesn't rank patches, or has no count of its own.
    """
    model = model.clone()
    for value in [value for value in model.graph.outputs if value.name == NEXT_LAYER]:
        model.graph.outputs.remove(value)
    encoder = model.clone()
    CountTokens(method=method, grid=grid)(encoder)
    rule = method.rule_at_output()
    if not isinstance(rule, Reduce) or rule.correlate is not None or rule.redundancy:
        raise Refused(f"method '{method.name}' merges or picks in several steps: only a ranking serves several counts")
    anchors = find_vision_anchors(encoder)
    if min(counts) <= anchors.separators:
        raise Refused(
            f"a bucket of {min(counts)} tokens: {anchors.separators} are newlines, which always stay; keep more"
        )
    b = Builder(f"lmmprune/{method.name}/ranking", about=_about(method))
    at = vision_output(b, anchors, grid)
    ranking = top(b, rule.filter(at), at.tokens)
    patches = b.stream("Identity", anchors.patches)
    _output(
        encoder,
        b,
        {PATCHES: (patches, static_shape(anchors.patches)), RANKING: (ranking, (at.batch, at.tokens))},
    )
    patches.type = anchors.patches.type
    encoder.graph.outputs.remove(anchors.separated)
    RemoveUnusedNodesPass()(encoder)
    infer_shapes(encoder)
    check_returned(encoder)
    return encoder, {count: _bucket_graph(model.clone(), method, grid, count) for count in counts}


def _about(method: Ranking) -> dict[str, str]:
    return {PASS: "split_vision", METHOD: method.name, SITE: str(VISION_OUTPUT)}


def _bucket_graph(model: ir.Model, method: Ranking, grid: tuple[int, int], keep: int) -> ir.Model:
    anchors = find_vision_anchors(model)
    batch, tokens, width = static_shape(anchors.patches)
    b = Builder(f"lmmprune/{method.name}/bucket", about=_about(method))
    given = ir.Input(PATCHES, ir.Shape([batch, tokens, width]), anchors.patches.type)
    ranking = ir.Input(RANKING, ir.Shape([batch, tokens]), ir.TensorType(ir.DataType.INT64))
    patches = keep - anchors.separators
    kept = ascending(b, b.op("Slice", ranking, [0], [patches], [1]), patches)
    chosen = gather_tokens(b, given, kept, (batch, tokens, patches), stream=True)
    for node, index in list(anchors.patches.uses()):
        node.replace_input_with(index, chosen)
    model.graph.inputs[:] = [given, ranking]
    separated = insert_separators(b, anchors, kept, patches) if anchors.separators else None
    named = b.op("Identity", separated.places if separated else kept)
    named.name, named.type = KEPT, ir.TensorType(ir.DataType.INT64)
    model.graph.outputs.append(named)
    b.prepend_to(model.graph)
    if separated:
        end = Builder(f"lmmprune/{method.name}/bucket/separators", about=_about(method))
        replace_features(model, anchors.separated, separated_features(end, anchors, separated, patches))
        end.append_to(model.graph)
    RemoveUnusedNodesPass()(model)
    infer_shapes(model, stale=[chosen])
    return model


def _output(model: ir.Model, b: Builder, values: dict[str, tuple[ir.Value, tuple[int, ...]]]) -> None:
    """Name values and make them outputs of the graph; integers unless they have a type."""
    for name, (value, shape) in values.items():
        value.name, value.shape = name, ir.Shape(shape)
        value.type = value.type or ir.TensorType(ir.DataType.INT64)
        model.graph.outputs.append(value)
    b.append_to(model.graph)
