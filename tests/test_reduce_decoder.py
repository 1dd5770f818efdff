"""Cuts in the decoder: prefill and cached decode equal NumPy, and a decode step is untouched by them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from cuts import DECODER, FASTV, PREFIX, SPECIAL, TOKENS, cut_decoder, select_and_decode, stage
from decoders import IMAGE, VOCAB, Layer, SmallDecoder, feeds, grown
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from towers import run, session

from lmmprune.passes.find.sites import VISION_OUTPUT, llm_input, llm_layer, parse_site
from lmmprune.passes.methods import get_method
from lmmprune.passes.reduce.filters import text_attention
from lmmprune.passes.reduce.reduce_decoder import ReduceDecoder
from lmmprune.passes.reduce.rules import Reduce, ReductionRule
from lmmprune.passes.reduce.site_context import SiteContext
from lmmprune.passes.reduce.stage import Stage


def asked_for(at: SiteContext) -> ir.Value:
    return at.rows(text_attention(at), "visual", 1)


def longest(at: SiteContext) -> ir.Value:
    return at.b.op("ReduceL2", at.visual, [2], keepdims=0)


RULES: dict[str, ReductionRule] = {
    "last": FASTV,
    "own": get_method("pyramiddrop").rule(),
    "text": Reduce(filter=asked_for),
    "ficoco": get_method("ficoco-l", {"eps": "0.6"}).rule(),
    "longest": Reduce(filter=longest),
}


@dataclasses.dataclass
class Oracle:
    """What the stages do in a prefill, over single entries."""

    decoder: SmallDecoder
    stages: dict[str, tuple[str, int, int]]  # site -> rule, keep, prune_text
    ids: list[int]
    tokens: int
    prefix: int
    positions: str
    kept: dict[str, list[int]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.places = list(range(self.tokens))
        self.now = list(self.ids)

    def __call__(self, site: str, x: np.ndarray, positions: np.ndarray, seen: Layer) -> tuple[np.ndarray, np.ndarray]:
        if site not in self.stages:
            return x, positions
        rule, keep, prune = self.stages[site]
        n, first = len(self.places), self.prefix
        visual, text = list(range(first, first + n)), list(range(first + n, len(x)))
        # No attention lies before the first layer, and only what needs none is tried there.
        a = seen.attention.mean(axis=0) if site != "llm_input_0" else np.zeros((len(x), len(x)))
        asked = {j: np.mean([a[t, j] for t in text]) for j in visual + text}
        if rule == "longest":
            stay = sorted(visual, key=lambda j: (-np.linalg.norm(x[j]), j))[:keep]
        elif rule == "own":
            # Of the layer that the cut is in front of, on what enters it, under the numbers that it has there.
            own = self.decoder.attention(parse_site(site).layer, x, positions)[0].mean(axis=0)
            stay = sorted(visual, key=lambda j: (-own[-1, j], j))[:keep]
        elif rule == "last":
            stay = sorted(visual, key=lambda j: (-a[-1, j], j))[:keep]
        elif rule == "text":
            stay = sorted(visual, key=lambda j: (-asked[j], j))[:keep]
        else:
            redundancy = {j: 0.6 * np.mean(a[j, visual]) - 0.4 * asked[j] for j in visual}
            stay = [j for j in visual if j not in sorted(visual, key=lambda j: (-redundancy[j], j))[: n - keep]]
        stay = sorted(stay)
        x = self._compressed(x, a, [j for j in visual if j not in stay], stay, text) if rule == "ficoco" else x
        candidates = [t for t in text[1:-1] if self.now[t] not in SPECIAL]
        gone = sorted(candidates, key=lambda t: (asked[t], t))[:prune]
        rows = [*range(first), *stay, *(t for t in text if t not in gone)]
        self.places = [self.places[j - first] for j in stay]
        self.kept[site] = self.places
        self.now = [self.now[row] for row in rows]
        return x[rows], positions[rows] if self.positions == "original" else positions[: len(rows)]

    def _compressed(
        self, x: np.ndarray, a: np.ndarray, gone: list[int], stay: list[int], text: list[int]
    ) -> np.ndarray:
        count = max(1, len(stay) - 1 - int(np.floor(0.6 * (len(stay) - 1))))
        total, share = x.copy(), np.ones(len(x))
        for i in gone:
            c = {j: 0.6 * a[i, j] + 0.4 * np.mean([a[t, i] * a[t, j] for t in text]) for j in stay}
            targets = sorted(stay, key=lambda j: (-c[j], j))[:count]
            for j in targets:
                weight = c[j] / sum(c[t] for t in targets)
                total[j] += weight * x[i]
                share[j] += weight
        return total / share[:, None]


def prompt(rng: np.random.Generator, prefix: int, tokens: int, tail: int) -> list[int]:
    ids = rng.integers(4, VOCAB, prefix + tokens + tail)
    ids[prefix : prefix + tokens] = IMAGE
    special = rng.random(len(ids)) < 0.2
    special[prefix : prefix + tokens] = False
    return [int(i) for i in np.where(special, 1, ids)]


@settings(max_examples=40, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(
    layers=st.integers(2, 5),
    heads=st.sampled_from([(1, 1), (2, 1), (4, 2), (3, 3)]),
    width=st.sampled_from([4, 6]),
    positions=st.sampled_from(["contiguous", "original"]),
    prefix=st.integers(0, 4),
    seed=st.integers(0, 10_000),
)
def test_any_chain_of_cuts_equals_numpy(
    layers: int, heads: tuple[int, int], width: int, positions: str, prefix: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    decoder = SmallDecoder(layers=layers, heads=heads[0], kv_heads=heads[1], width=width, seed=seed)
    tokens, tail = int(rng.integers(3, 10)), int(rng.integers(3, 8))
    ids = prompt(rng, prefix, tokens, tail)
    words = [i for i in ids[prefix + tokens + 1 : -1] if i not in SPECIAL]
    places = sorted(rng.permutation(np.arange(-1, layers))[: rng.integers(1, layers + 1)])
    chosen, prune = int(rng.integers(len(places))), int(rng.integers(0, len(words) + 1))
    stages, keep = [], tokens
    for index, layer in enumerate(places):
        before_next = layer < 0 or (bool(rng.integers(2)) and layer + 1 < layers)
        site = llm_input(int(layer) + 1) if before_next else llm_layer(int(layer))
        pruned = prune if index == chosen and layer >= 0 else 0
        # Once in a while a stage keeps all the visual tokens; the first one only if words go there.
        if (index == 0 and not pruned) or rng.random() < 0.8:
            keep = int(rng.integers(1, max(keep, 2)))
        rules = [name for name in RULES if name != "own" or before_next]
        stages.append((site, keep, "longest" if layer < 0 else str(rng.choice(rules)), pruned))

    chain = [stage(site, keep, RULES[rule], prune) for site, keep, rule, prune in stages]
    asked: dict[str, Any] = {"tokens": tokens, "prefix": prefix, "positions": positions}
    if places[0] < 0:
        call = both = select_and_decode(decoder, chain, **asked)
        removed = both.removed_before(layers)
    else:
        model, reduce = cut_decoder(decoder, chain, **asked)
        call, removed = session(model), reduce.removed_before(layers)
    # Sites that change nothing: the oracle leaves them out, as the pass does.
    active, n = {}, tokens
    for site, keep, rule, prune in stages:
        if keep < n or prune:
            active[str(site)] = (rule if keep < n else "last", keep, prune)
        n = keep
    oracle = Oracle(decoder, active, ids, tokens, prefix, positions)
    features, at = decoder.features(tokens), np.arange(len(ids))
    found = call(feeds(decoder, ids, at, features, decoder.no_cache()))
    logits, past = decoder.forward(ids, at, features, decoder.no_cache(), cut=oracle)
    assert {name for name in found if name.startswith("kept_indices")} == {f"kept_indices.{site}" for site in active}
    for site, places in oracle.kept.items():
        assert found[f"kept_indices.{site}"].tolist() == [places]
    # The run-time counts on: one number more per token, whatever was cut.
    for step in range(4):
        np.testing.assert_allclose(found["logits"][0, 0], logits, atol=2e-5)
        for layer, (mine, theirs) in enumerate(zip(grown(decoder, found), past, strict=True)):
            for a, b in zip(mine, theirs, strict=True):
                assert a.shape[1] == len(ids) + step - removed[layer]
                np.testing.assert_allclose(a, b, atol=2e-5)
        word, at = int(rng.integers(4, VOCAB)), np.array([len(ids) + step])
        found = call(feeds(decoder, [word], at, features, grown(decoder, found)))
        shift = removed if positions == "contiguous" else [0] * layers
        logits, past = decoder.forward([word], at, features, past, shift=shift)


CHAIN = [
    stage(llm_layer(0), 7, RULES["ficoco"]),
    stage(llm_input(2), 5, RULES["text"], prune_text=2),
    stage(llm_input(3), 4, RULES["own"]),
    stage(llm_layer(3), 2, RULES["ficoco"]),
]


@pytest.mark.parametrize("positions", ["contiguous", "original"])
def test_several_tokens_at_once_are_decoded_as_one_by_one(positions: str) -> None:
    model, _ = cut_decoder(DECODER, CHAIN, tokens=TOKENS, prefix=PREFIX, positions=positions)
    call, features = session(model), DECODER.features(TOKENS)
    ids = prompt(np.random.default_rng(0), PREFIX, TOKENS, 6)
    start = grown(DECODER, call(feeds(DECODER, ids, np.arange(len(ids)), features, DECODER.no_cache())))
    words, cache = [7, 9, 11], start
    for step, word in enumerate(words):
        last = call(feeds(DECODER, [word], np.array([len(ids) + step]), features, cache))
        cache = grown(DECODER, last)
    together = call(feeds(DECODER, words, len(ids) + np.arange(3), features, start))
    np.testing.assert_allclose(together["logits"], last["logits"], atol=1e-6)
    for mine, theirs in zip(grown(DECODER, together), cache, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("words", [[7], [7, 9, 11]])
def test_decoding_is_the_unpruned_graph_bit_for_bit(words: list[int]) -> None:
    """With caches of one length and the numbers kept, a step of the cut graph is a step of the graph without cuts."""
    model, _ = cut_decoder(DECODER, CHAIN, tokens=TOKENS, prefix=PREFIX, positions="original")
    plain = DECODER.graph()
    rng = np.random.default_rng(1)
    shape = (DECODER.kv_heads, 13, DECODER.width)
    cache = [tuple(rng.standard_normal(shape).astype(np.float32) for _ in range(2)) for _ in range(DECODER.layers)]
    given = feeds(DECODER, words, 20 + np.arange(len(words)), DECODER.features(TOKENS), cache)  # type: ignore[arg-type]
    found, expected = run(model, given), run(plain, given)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_a_picture_of_one_token_at_the_beginning_is_no_decode_step() -> None:
    """One token comes in at a step, as many as reach up to the picture's end here: only text behind tells a prompt."""
    model, _ = cut_decoder(DECODER, [stage(llm_input(2), 1, prune_text=2)], tokens=1, prefix=0)
    call, features, ids = session(model), DECODER.features(1), [IMAGE, 5, 6, 7, 8, 9]
    cache = grown(DECODER, call(feeds(DECODER, ids, np.arange(len(ids)), features, DECODER.no_cache())))
    assert [key.shape[1] for key, _ in cache] == [6, 6, 4, 4]
    cache = grown(DECODER, call(feeds(DECODER, [7], np.array([len(ids)]), features, cache)))
    assert [key.shape[1] for key, _ in cache] == [7, 7, 5, 5]


def test_lengths_are_those_of_the_schedule() -> None:
    _, reduce = cut_decoder(DECODER, CHAIN, tokens=TOKENS, prefix=PREFIX)
    assert {str(site): length for site, length in reduce.lengths(20).items()} == {
        "llm_layer_0": 19,  # 8 -> 7
        "llm_input_2": 15,  # 7 -> 5 and two words
        "llm_input_3": 14,  # 5 -> 4
        "llm_layer_3": 12,  # 4 -> 2
    }
    # A cut in a layer, or before it, shortens the next cache; nothing comes behind the last layer's cut.
    assert reduce.removed_before(4) == [0, 1, 5, 6]


def test_a_score_and_its_merging_share_one_attention() -> None:
    """FiCoCo reads visual and text rows, for redundancy and for affinity: one product and one softmax per site."""
    rule = RULES["ficoco"]
    model, _ = cut_decoder(DECODER, [stage(llm_layer(1), 5, rule), stage(llm_layer(2), 3, rule)], tokens=8, prefix=2)
    assert not any(node.op_type == "Softmax" for node in DECODER.graph().graph)
    for site in ("llm_layer_1", "llm_layer_2"):
        mine = [node.op_type for node in model.graph if f"/{site}/" in str(node.name)]
        assert mine.count("Softmax") == 1
        # q k^T, then what goes through the text, and the merge itself.
        assert mine.count("MatMul") == 3


def test_nothing_to_cut_is_the_same_graph() -> None:
    before = ir.serde.serialize_model(DECODER.graph()).SerializeToString()
    idle = [stage(llm_layer(1), TOKENS), Stage(site=VISION_OUTPUT, keep=3, rule=FASTV)]
    for stages in ([], idle):
        model = DECODER.graph()
        reduce = ReduceDecoder(method="test", stages=stages, image_tokens=TOKENS, prefix=PREFIX)
        assert not reduce(model).modified
        assert ir.serde.serialize_model(model).SerializeToString() == before
        assert reduce.removed_before(4) == [0, 0, 0, 0]
