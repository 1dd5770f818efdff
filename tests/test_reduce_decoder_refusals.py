"""What ``ReduceDecoder`` refuses, and the promises that it keeps."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from cuts import DECODER, PREFIX, TOKENS, cut_decoder, stage

from lmmprune.errors import GraphRefusal
from lmmprune.passes.find.sites import llm_input, llm_layer
from lmmprune.passes.graph.refusals import Broken
from lmmprune.passes.reduce.filters import constant_places
from lmmprune.passes.reduce.reduce_decoder import ReduceDecoder
from lmmprune.passes.reduce.rules import Outcome
from lmmprune.passes.reduce.site_context import SiteContext
from lmmprune.passes.reduce.stage import Stage


def test_a_pruned_graph_is_refused() -> None:
    model, reduce = cut_decoder(DECODER, [stage(llm_layer(1), 4)], tokens=TOKENS, prefix=PREFIX)
    with pytest.raises(GraphRefusal, match="the decoder is pruned already"):
        reduce(model)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([stage(llm_layer(0), 0)], r"can't keep 0 of 8 visual tokens at llm_layer_0: expected 1\.\.8"),
        ([stage(llm_layer(0), 9)], r"can't keep 9 of 8 visual tokens at llm_layer_0: expected 1\.\.8"),
        ([stage(llm_layer(0), 4), stage(llm_layer(1), 5)], r"can't keep 5 of 4 visual tokens at llm_layer_1"),
        ([stage(llm_input(4), 4)], r"no site 'llm_input_4': the decoder has layers 0\.\.3, give one of them"),
        ([stage(llm_layer(4), 4)], r"no site 'llm_layer_4': the decoder has layers 0\.\.3, give one of them"),
        ([stage(llm_layer(1), 4), stage(llm_input(2), 3)], "llm_input_2: layer 1 is already cut"),
        ([stage(llm_layer(1), 4), stage(llm_layer(1), 3)], "llm_layer_1: layer 1 is already cut"),
    ],
)
def test_schedules_that_dont_fit_are_refused(stages: list[Stage], message: str) -> None:
    with pytest.raises(GraphRefusal, match=message):
        ReduceDecoder(method="test", stages=stages, image_tokens=TOKENS, prefix=PREFIX)(DECODER.graph())


def reduce_once(model: ir.Model) -> None:
    ReduceDecoder(method="test", stages=[stage(llm_layer(1), 4)], image_tokens=TOKENS, prefix=PREFIX)(model)


def test_a_batch_is_refused() -> None:
    with pytest.raises(GraphRefusal, match=r"'input_ids' has shape \[2,seq\]: sites in the decoder need a batch of 1"):
        reduce_once(DECODER.graph(batch=2))


@pytest.mark.parametrize("name", ["input_ids", "position_ids", "image_features", "past_key_values.2.value"])
def test_a_graph_without_an_input_is_refused(name: str) -> None:
    model = DECODER.graph()
    next(value for value in model.graph.inputs if value.name == name).name = "other"
    with pytest.raises(GraphRefusal, match=f"no '{name}', found .* not a canonical decoder graph"):
        reduce_once(model)


def test_a_graph_without_attention_is_refused() -> None:
    model = DECODER.graph()
    for node in model.graph:
        if node.op_type == "Attention":
            node.domain = "elsewhere"
    with pytest.raises(GraphRefusal, match="no Attention node in the decoder graph"):
        reduce_once(model)


def test_attention_without_a_mask_is_refused() -> None:
    model = DECODER.graph()
    for node in model.graph:
        if node.op_type == "Attention":
            node.resize_inputs(3)
    with pytest.raises(GraphRefusal, match="'node_mixed1' has no mask input: expected the causal mask"):
        reduce_once(model)


def test_something_between_attention_and_residual_is_refused() -> None:
    model = DECODER.graph()
    node = next(node for node in model.graph if node.name == "node_out1")
    node.op_type = "Gather"
    with pytest.raises(GraphRefusal, match=r"'node_out1' \(Gather\) lies between 'node_mixed1' and its residual sum"):
        reduce_once(model)


def test_new_tokens_are_refused() -> None:
    """Rules that make tokens of their own fit the encoder only, where the whole sequence is theirs."""

    def made(at: SiteContext, keep: int) -> Outcome:
        places = constant_places(at, np.arange(keep))
        return Outcome(kept=places, tokens=at.gather(at.visual, places, keep), ordered=True)

    with pytest.raises(GraphRefusal, match="llm_layer_1"):
        cut_decoder(DECODER, [stage(llm_layer(1), 4, made)], tokens=TOKENS, prefix=PREFIX)


@pytest.mark.parametrize("tampered", ["one token more goes", "the cut is lifted"])
def test_a_broken_promise_is_noticed(tampered: str) -> None:
    model, reduce = cut_decoder(DECODER, [stage(llm_layer(1), 4), stage(llm_input(3), 2)], tokens=TOKENS, prefix=PREFIX)
    reduce.ensures(model)
    if tampered == "one token more goes":
        # The rows that stay are sliced up to "length - 2".
        ours = [node for node in model.graph if str(node.name).startswith("lmmprune/test/llm_input_3/")]
        constants = [v for node in ours if node.op_type == "Sub" for v in node.inputs if v and v.is_initializer()]
        removed = next(value for value in constants if value.const_value.numpy().tolist() == [2])  # type: ignore[union-attr]
        removed.const_value = ir.Tensor(np.array([3], np.int64), name=removed.name)
    else:
        gather = next(n for n in model.graph if n.outputs[0].name == "lmmprune.tokens.llm_input_3")
        identity = ir.node("Identity", [gather.inputs[0]])
        model.graph.insert_after(gather, identity)
        ir.convenience.replace_all_uses_with(gather.outputs[0], identity.outputs[0])
        gather.outputs[0].name, identity.outputs[0].name = "old", "lmmprune.tokens.llm_input_3"
    with pytest.raises(Broken, match=r"llm_input_3 leaves \d+ tokens, the schedule says 6"):
        reduce.ensures(model)


def test_the_promise_is_that_of_the_schedule() -> None:
    model, _ = cut_decoder(DECODER, [stage(llm_layer(1), 4)], tokens=TOKENS, prefix=PREFIX)
    other = ReduceDecoder(method="test", stages=[stage(llm_layer(1), 5)], image_tokens=TOKENS, prefix=PREFIX)
    with pytest.raises(Broken, match="llm_layer_1 leaves 8 tokens, the schedule says 9"):
        other.ensures(model)


def test_a_cut_that_is_missing_is_noticed() -> None:
    model, _ = cut_decoder(DECODER, [stage(llm_layer(1), 4)], tokens=TOKENS, prefix=PREFIX)
    other = ReduceDecoder(method="test", stages=[stage(llm_layer(2), 4)], image_tokens=TOKENS, prefix=PREFIX)
    with pytest.raises(Broken, match="llm_layer_2"):
        other.ensures(model)
