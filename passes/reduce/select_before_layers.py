"""Write the graph that chooses visual tokens in front of the decoder's layers, where the question is known already.

It runs once per prompt, between vision graph and decoder: the decoder, which runs for every token, has no part of it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lmmprune.names import KEPT, METHOD, PASS, SELECTED, SITE, kept_at, received_at
from lmmprune.passes.find.anchors import DecoderAnchors, find_decoder_anchors
from lmmprune.passes.graph.builder import Builder
from lmmprune.passes.graph.refusals import Broken, Refused
from lmmprune.passes.graph.shapes import bind_dims, infer_shapes, static_shape
from lmmprune.passes.reduce.rules import Outcome, ascending, merge_targets, merged
from lmmprune.passes.reduce.site_context import INT64, SiteContext
from lmmprune.passes.reduce.site_counts import check_counts
from lmmprune.passes.reduce.stage import Stage


def select_before_layers(
    decoder: ir.Model, stage: Stage, *, method: str, image_tokens: int, prefix: int
) -> ir.Model | None:
    """Return a graph that chooses among the features that enter a decoder; the decoder stays as it is.

    Before: ``input_ids [1,T], image_features [1,N,C] -> merge of image and text -> layers``
    After: ``input_ids [1,T], image_features [1,N,C] -> merge of image and text -> rule -> selected_features [1,K,C],
    kept_indices.llm_input_0 [1,K]``, and ``received.llm_input_0 [1,K]`` where the rule merges; no layer is left. The
    embedding table is the decoder's own, of the same name. The decoder then takes K features and placeholders.

    Args:
        decoder: A canonical decoder that isn't pruned, with no number bound to its image tokens.
        stage: The stage at ``llm_input_0``.
        method: Name, for the new nodes' names.
        image_tokens: N, visual tokens that leave the vision graph.
        prefix: Tokens of the prompt before the image.

    Returns:
        The graph; None where the stage removes nothing.

    Raises:
        Refused: The stage asks for what isn't there, or the graph isn't a canonical decoder.
    """
    if stage.keep == image_tokens and not stage.prune_text:
        return None
    if any(str(value.name).startswith(KEPT) for value in decoder.graph.outputs):
        raise Refused("the decoder is pruned already: start from the unpruned graph")
    model = decoder.clone()
    bind_dims(model, {"image_tokens": image_tokens})
    anchors = find_decoder_anchors(model)
    _check(anchors, stage, image_tokens)
    keep, graph = stage.keep, model.graph
    b = Builder(
        f"lmmprune/{method}/{stage.site}", about={PASS: "select_before_layers", METHOD: method, SITE: str(stage.site)}
    )
    at = _site(b, anchors, stage, image_tokens, prefix)
    outcome = stage.rule(at, keep)
    if outcome.tokens is not None or outcome.sizes is not None:
        raise Refused(f"{stage.site}: a rule in the decoder may drop and merge, not make tokens of its own")
    kept = outcome.kept if outcome.ordered else ascending(b, outcome.kept, keep)
    chosen = _features(b, at, anchors, outcome, kept, keep)
    chosen.name, chosen.type = SELECTED, anchors.image_features.type
    outputs = [chosen]
    for name, value in ((kept_at(stage.site), kept), (received_at(stage.site), merge_targets(b, outcome))):
        if value is not None:
            named = b.op("Reshape", value, [1, keep])
            named.name, named.type, named.shape = name, ir.TensorType(ir.DataType(INT64)), ir.Shape([1, keep])
            outputs.append(named)
    b.insert_after(graph, anchors.embeds.producer())
    graph.outputs[:] = outputs
    RemoveUnusedNodesPass()(model)
    graph.inputs[:] = [anchors.input_ids, anchors.image_features]
    infer_shapes(model)
    if (found := static_shape(chosen)[1]) != keep:
        raise Broken(f"{stage.site} leaves {found} tokens, the schedule says {keep}")
    return model


def _check(anchors: DecoderAnchors, stage: Stage, image_tokens: int) -> None:
    check_counts([stage], image_tokens)
    if stage.prune_text:
        raise Refused(f"{stage.site}: prune_text ranks words by attention, and none lies before this site: leave it 0")
    if anchors.input_ids.shape is not None and anchors.input_ids.shape[0] != 1:
        raise Refused(f"'input_ids' has shape {anchors.input_ids.shape}: sites in the decoder need a batch of 1")


def _site(b: Builder, anchors: DecoderAnchors, stage: Stage, tokens: int, prefix: int) -> SiteContext:
    rows = b.stream("Slice", anchors.embeds, [prefix], [prefix + tokens], [1])
    return SiteContext(
        b=b,
        name=str(stage.site),
        layer=anchors.layers[0],
        layers=anchors.layers,
        attended=False,
        depth=len(anchors.layers),
        stream=anchors.embeds,
        # Inference can't see how many there are; with the number, all that follows has a static shape.
        visual=b.stream("Reshape", rows, [1, tokens, _width(anchors.embeds)]),
        batch=1,
        tokens=tokens,
        first=prefix,
        grid=(1, tokens),
        origin=b.constant(np.arange(tokens, dtype=np.int64)[None]),
        embeds=(anchors.embeds, prefix, prefix + tokens),
        prompted=True,
    )


def _features(
    b: Builder, at: SiteContext, anchors: DecoderAnchors, outcome: Outcome, kept: ir.Value, keep: int
) -> ir.Value:
    """Return the features that go on, ``[1,K,C]``; what is merged, is merged in what enters layer 0."""
    every = anchors.image_features
    chosen = b.stream("Gather", every, b.op("Reshape", kept, [keep]), axis=1)
    if outcome.merge is None:
        return chosen
    width, whole = _width(anchors.embeds), _width(every)
    own, others = every, chosen
    if whole > width:
        own = b.stream("Slice", every, [0], [width], [2])
        others = b.stream("Slice", chosen, [width], [whole], [2])
    mine = b.stream("Gather", own, b.op("Reshape", kept, [keep]), axis=1)
    dropped = at.gather(own, outcome.merge.dropped, at.tokens - keep)
    total = merged(b, mine, dropped, outcome.merge)
    # A node that moves tokens takes them in the graph's type.
    return b.stream("Concat", total, others, axis=2) if whole > width else b.stream("Identity", total)


def _width(value: ir.Value) -> int:
    assert value.shape is not None
    return int(value.shape[2])  # type: ignore[arg-type]  # channels are a number in every canonical graph
