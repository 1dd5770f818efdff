"""Every method's graphs against the independent PyTorch reference: kept indices equal, features and logits to 1e-4.

Random models, prompts, ratios and position policies; prefill and eight cached decode steps against full re-runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from one_picture import OF_ONE_PICTURE
from random_llava import IMAGE_TOKEN, NEVER_GENERATED
from random_models import SHAPES, Shape, canonical, torch_model
from random_options import options
from selecting import Selecting, own_nodes, selects
from towers import session

from lmmprune.compiler.verify.reference import Cut, rule_options, say, see
from lmmprune.errors import InputError
from lmmprune.models.trace import cache_names
from lmmprune.names import NEXT_LAYER
from lmmprune.passes.methods import METHODS, Method, keep_count
from lmmprune.passes.reduce.reduce_decoder import ReduceDecoder
from lmmprune.passes.reduce.reduce_vision import ReduceVision
from lmmprune.passes.reduce.stage import Stage

CASES = 40
# Cases in which the pass checks its own promises too: to fold a decoder takes longer than all else here.
CHECKED = 10
STEPS = 8
TOLERANCE = 1e-4
# Scores that differ by less than this may come out either way in another order of summation.
NEAR_TIE = 1e-5


Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


def shapes_for(method: type[Method]) -> list[Shape]:
    return [shape for shape in SHAPES if shape.has_cls or not method.needs_cls]


def plan(method: Method, shape: Shape, rng: np.random.Generator) -> tuple[Stage, ...]:
    """Return stages for a random ratio that the method can do on this model and that removes something."""
    for ratio in rng.uniform(0.1, 0.95, 20):
        try:
            stages = method.plan(shape.facts, keep_count(shape.facts.tokens, ratio=float(ratio)))
        except InputError:
            continue
        if stages:
            return stages
    raise AssertionError(f"no feasible ratio for {method} on {shape}")


def compare(name: str, shape: Shape, seed: int) -> bool:
    """Try one case; False if a near-tie makes it meaningless."""
    rng = np.random.default_rng([seed, shape.seed])
    chosen = options(name, rng)
    method = METHODS[name](**chosen)
    stages = plan(method, shape, rng)
    policy = str(rng.choice(["contiguous", "original"]))
    cuts = [Cut(str(stage.site), stage.keep) for stage in stages]
    inside = [cut for cut in cuts if cut.site.startswith("llm")]
    before = [cut for cut in cuts if not cut.site.startswith("llm")]
    parameters = rule_options(name, method.parameters, shape.facts.encoder_layers)

    pixels = torch.from_numpy(rng.standard_normal((shape.batch, 3, shape.grid * 4, shape.grid * 4)).astype(np.float32))
    expected = see(torch_model(shape), name, parameters, before, pixels)
    if expected.margin < NEAR_TIE:
        return False
    reduce_vision = ReduceVision(method=name, stages=stages, grid=shape.facts.grid)
    call = reduced(shape, 0, reduce_vision, cut=bool(before), checked=True)
    found = call({"pixel_values": pixels.numpy()})
    # One stage needs no output of its own: it is the last one.
    kept = {cut.site: found.get(f"kept_indices.{cut.site}", found.get("kept_indices")) for cut in before}
    for site, places in expected.kept.items():
        np.testing.assert_array_equal(kept[site], places, err_msg=f"{site} {cuts} {chosen}")
    np.testing.assert_allclose(found["image_features"], expected.features, **near(expected.features))

    prefix, tail = prompt(rng, 2 + parameters.get("prune_text", 0))
    features = expected.features[0]
    run = ReduceDecoder(
        method=name,
        stages=stages,
        image_tokens=len(features),
        prefix=len(prefix),
        positions=policy,
        special_ids=(0, 1, 2, IMAGE_TOKEN),
    )
    run, call = spoken(shape, run, cut=bool(inside), checked=seed < CHECKED)
    places = found.get("kept_indices", np.arange(len(features))[None])[0]
    logits, places_inside, words = generate(call, shape, features, places, prefix, tail, policy, run)
    said = say(
        torch_model(shape),
        name,
        parameters,
        inside,
        torch.from_numpy(features),
        expected.kept[before[-1].site][0] if before else None,
        prefix,
        tail,
        positions={"vision": policy, "llm": policy},
        patches=shape.facts.tokens,
        steps=STEPS,
        special_ids={0, 1, 2},
        # No token sees those behind it: one run gives what each step would.
        forced=words,
    )
    if said.margin < NEAR_TIE:
        return False
    for site, wanted in said.kept.items():
        np.testing.assert_array_equal(places_inside[f"kept_indices.{site}"][0], wanted, err_msg=f"{site} {cuts}")
    np.testing.assert_allclose(logits, said.logits, **near(said.logits))
    return True


def spoken(shape: Shape, run: ReduceDecoder, *, cut: bool, checked: bool) -> tuple[ReduceDecoder | Selecting, Run]:
    """Return what tells the lengths of the caches, and the decoder behind all that chooses for it."""
    if not selects(run):
        return run, reduced(shape, 1, run, cut=cut, checked=checked)
    both = Selecting(canonical(shape)[1].clone(), run, checked=checked)
    assert not own_nodes(both.decoder)
    return both, both


def near(expected: np.ndarray) -> dict[str, float]:
    return {"rtol": 0, "atol": TOLERANCE * max(1.0, float(np.abs(expected).max()))}


def prompt(rng: np.random.Generator, shortest_tail: int) -> tuple[list[int], list[int]]:
    lengths = int(rng.integers(0, 6)), int(rng.integers(shortest_tail, shortest_tail + 6))
    first, second = ([int(i) for i in rng.integers(NEVER_GENERATED, 40, length)] for length in lengths)
    return first, second


def reduced(shape: Shape, side: int, cuts: ReduceVision | ReduceDecoder, *, cut: bool, checked: bool) -> Run:
    """Return the vision graph (0) or the decoder (1) after a pass; one that cuts nothing there leaves what it was."""
    graph = canonical(shape)[side].clone()
    if checked:
        cuts(graph)
    else:
        cuts.call(graph)
    if cut:
        return session(graph)
    call, nodes = untouched(shape, side)
    assert [node.name for node in graph.graph] == nodes
    return call


@functools.cache
def untouched(shape: Shape, side: int) -> tuple[Run, list[str | None]]:
    """Return the session that all methods share which don't cut on a side, and its nodes."""
    graph = canonical(shape)[side].clone()
    if side == 0:
        # The traced layer beyond the features goes.
        ReduceVision(method="uniform", stages=(), grid=shape.facts.grid)(graph)
    return session(graph), [node.name for node in graph.graph]


def generate(
    call: Run,
    shape: Shape,
    features: np.ndarray,
    places: np.ndarray,
    prefix: list[int],
    tail: list[int],
    policy: str,
    run: ReduceDecoder | Selecting,
) -> tuple[np.ndarray, dict[str, np.ndarray], list[int]]:
    """Prefill and decode with the cache; return the logits of every step, the prefill's outputs and the tokens."""
    ids = np.array([[*prefix, *[IMAGE_TOKEN] * len(features), *tail]])
    positions = np.arange(ids.shape[1])
    if policy == "original":
        start, stop = len(prefix), len(prefix) + len(features)
        # A token that is no patch has the first image place's number.
        positions[start:stop] = start + np.maximum(places, 0)
        positions[stop:] += shape.facts.tokens - len(features)
    past, present = cache_names(shape.llm_layers)
    cache = {name: np.zeros((1, shape.kv_heads, 0, shape.head_dim), np.float32) for pair in past for name in pair}
    first: dict[str, np.ndarray] = {}
    logits: list[np.ndarray] = []
    words: list[int] = []
    removed = run.removed_before(shape.llm_layers)
    feed_ids, feed_positions, length = ids, positions[None], ids.shape[1]
    for step in range(1 + STEPS):
        found = call({"input_ids": feed_ids, "position_ids": feed_positions, "image_features": features[None], **cache})
        first = first or found
        logits.append(found["logits"][0, -1])
        words.append(int(logits[-1].argmax()))
        for layer, (mine, theirs) in enumerate(zip(past, present, strict=True)):
            for into, out in zip(mine, theirs, strict=True):
                cache[into] = found[out]
                assert found[out].shape[2] == length + step - removed[layer], out
        feed_ids, feed_positions = np.array([words[-1:]]), feed_positions[:, -1:] + 1
    return np.stack(logits), first, words


@pytest.mark.parametrize("name", sorted(OF_ONE_PICTURE))
def test_graphs_do_what_the_formulas_say(name: str) -> None:
    shapes = shapes_for(METHODS[name])
    counted = seed = 0
    while counted < CASES:
        counted += compare(name, shapes[seed % len(shapes)], seed)
        seed += 1
        assert seed < CASES * 1.5, f"{seed - counted} of {seed} random cases were near-ties"


@pytest.mark.parametrize("name", sorted(METHODS))
def test_nothing_removed_is_the_unpruned_graph(name: str) -> None:
    shape = SHAPES[0]
    vision, decoder = (graph.clone() for graph in canonical(shape))
    stages = METHODS[name]().plan(shape.facts, shape.facts.tokens)
    assert stages == ()
    before = [[node.name for node in graph.graph] for graph in (vision, decoder)]
    assert not ReduceDecoder(method=name, stages=stages, image_tokens=16, prefix=2)(decoder).modified
    # Only the traced layer beyond the features goes, which a method asks for when it prunes.
    ReduceVision(method=name, stages=stages, grid=shape.facts.grid)(vision)
    assert not {value.name for value in vision.graph.outputs} & {NEXT_LAYER, "kept_indices"}
    assert [node.name for node in decoder.graph] == before[1]
    assert {node.name for node in vision.graph} <= set(before[0])
