"""The graph that chooses in front of the decoder's layers: what it holds, what the decoder doesn't, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from cuts import DECODER, PREFIX, TOKENS, picking, select_and_decode, stage
from decoders import IMAGE, feeds, grown
from selecting import own_nodes

from lmmprune.passes.find.sites import llm_input, llm_layer
from lmmprune.passes.graph.refusals import Refused
from lmmprune.passes.methods import METHODS
from lmmprune.passes.reduce.reduce_decoder import ReduceDecoder
from lmmprune.passes.reduce.rules import Merge, Outcome, Reduce, rest
from lmmprune.passes.reduce.select_before_layers import select_before_layers
from lmmprune.passes.reduce.site_context import SiteContext
from lmmprune.passes.reduce.stage import Stage

FIRST = llm_input(0)
KEPT = [1, 2, 4, 7]


def select(stage: Stage, tokens: int = TOKENS) -> object:
    return select_before_layers(DECODER.graph(), stage, method="test", image_tokens=tokens, prefix=PREFIX)


@pytest.mark.parametrize("name", ["cdpruner", "mmtok", "dart"])
def test_the_decoder_carries_nothing_of_the_choice(name: str) -> None:
    method = METHODS[name](form="embedding") if name == "dart" else METHODS[name]()
    both = select_and_decode(DECODER, method.plan(DECODER.facts(TOKENS), 3), tokens=TOKENS, prefix=PREFIX)
    untouched = DECODER.graph()
    assert [node.op_type for node in both.decoder.graph] == [node.op_type for node in untouched.graph]
    assert own_nodes(both.selection)
    assert both.run.removed_before(DECODER.layers) == [0] * DECODER.layers
    assert {str(value.shape[2]) for value in both.decoder.graph.inputs if str(value.name).startswith("past")} == {
        "past"
    }


def test_of_the_decoder_it_holds_the_embedding_alone() -> None:
    both = select_and_decode(DECODER, [stage(FIRST, 4, picking(KEPT))], tokens=TOKENS, prefix=PREFIX)
    graph = both.selection.graph
    assert [value.name for value in graph.inputs] == ["input_ids", "image_features"]
    assert {value.name: list(value.shape) for value in graph.outputs} == {
        "selected_features": [1, 4, DECODER.channels],
        "kept_indices.llm_input_0": [1, 4],
    }
    assert not [node for node in graph if node.op_type in ("Attention", "RotaryEmbedding")]
    assert not {str(name) for name in graph.initializers} & (set(DECODER.weights()) - {"embed"})


@pytest.mark.parametrize("positions", ["contiguous", "original"])
def test_a_cut_behind_it_tells_places_of_the_whole_picture(positions: str) -> None:
    stages = [stage(FIRST, 4, picking(KEPT)), stage(llm_layer(1), 2, picking([1, 3]))]
    call = select_and_decode(DECODER, stages, tokens=TOKENS, prefix=PREFIX, positions=positions)
    ids = [5] * PREFIX + [IMAGE] * TOKENS + [7, 9, 11]
    features = DECODER.features(TOKENS)

    def cut(site: str, x: np.ndarray, at: np.ndarray, _: object) -> tuple[np.ndarray, np.ndarray]:
        for place, kept in (("llm_input_0", KEPT), ("llm_layer_1", [1, 3])):
            if site == place:
                count = len(x) - PREFIX - 3
                rows = [*range(PREFIX), *(PREFIX + j for j in kept), *range(PREFIX + count, len(x))]
                x, at = x[rows], at[rows] if positions == "original" else at[: len(rows)]
        return x, at

    found = call(feeds(DECODER, ids, np.arange(len(ids)), features, DECODER.no_cache()))
    logits, past = DECODER.forward(ids, np.arange(len(ids)), features, DECODER.no_cache(), cut=cut)
    assert found["kept_indices.llm_layer_1"].tolist() == [[2, 7]]
    np.testing.assert_allclose(found["logits"][0, 0], logits, atol=2e-5)
    at = np.array([len(ids)])
    found = call(feeds(DECODER, [6], at, features, grown(DECODER, found)))
    removed = call.removed_before(DECODER.layers)
    shift = removed if positions == "contiguous" else [0] * DECODER.layers
    logits, _ = DECODER.forward([6], at, features, past, shift=shift)
    np.testing.assert_allclose(found["logits"][0, 0], logits, atol=2e-5)


@pytest.mark.parametrize("mean", [True, False])
def test_what_is_merged_is_merged_in_the_features(mean: bool) -> None:
    weights = np.random.default_rng(0).random((1, 4, 4)).astype(np.float32)
    weights[0, 2] = 0

    def rule(at: SiteContext, keep: int) -> Outcome:
        kept = at.b.constant(np.array([KEPT]))
        merge = Merge(weights=at.b.constant(weights), dropped=rest(at, kept, TOKENS - keep), mean=mean)
        return Outcome(kept=kept, merge=merge, ordered=True)

    call = select_and_decode(DECODER, [stage(FIRST, 4, rule)], tokens=TOKENS, prefix=PREFIX)
    ids = [5] * PREFIX + [IMAGE] * TOKENS + [7]
    features = DECODER.features(TOKENS)
    found = call(feeds(DECODER, ids, np.arange(len(ids)), features, DECODER.no_cache()))
    expected = features[0][KEPT] + weights[0] @ features[0][[0, 3, 5, 6]]
    if mean:
        expected /= 1 + weights[0].sum(1, keepdims=True)
    np.testing.assert_allclose(found["selected_features"][0], expected, atol=1e-6)
    assert found["received.llm_input_0"].tolist() == [[1, 1, 0, 1]]


def test_what_removes_nothing_is_no_graph() -> None:
    assert select(stage(FIRST, TOKENS)) is None


def by_attention(at: SiteContext) -> object:
    return at.keys("visual")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (stage(FIRST, 4), "llm_input_0: no attention lies before it: score the tokens themselves"),
        (stage(FIRST, 4, Reduce(filter=by_attention)), "llm_input_0: no attention lies before it"),  # type: ignore[arg-type]  # refused
        (stage(FIRST, 0), r"can't keep 0 of 8 visual tokens at llm_input_0: expected 1\.\.8"),
        (stage(FIRST, 4, picking(KEPT), prune_text=1), "llm_input_0: prune_text ranks words by attention"),
        (
            stage(FIRST, 4, lambda at, keep: Outcome(kept=at.b.constant(np.array([KEPT])), tokens=at.visual)),
            "llm_input_0: a rule in the decoder may drop and merge, not make tokens of its own",
        ),
    ],
)
def test_refusals_name_the_site(asked: Stage, message: str) -> None:
    with pytest.raises(Refused, match=message):
        select(asked)


def test_a_pruned_decoder_is_refused() -> None:
    model = DECODER.graph()
    cut = stage(llm_layer(1), 3, picking([0, 1, 2]))
    ReduceDecoder(method="test", stages=[cut], image_tokens=TOKENS, prefix=PREFIX)(model)
    with pytest.raises(Refused, match="the decoder is pruned already"):
        select_before_layers(model, stage(FIRST, 2, picking([0, 1])), method="test", image_tokens=TOKENS, prefix=PREFIX)
