"""Methods that choose by embeddings, keys or movement, against their formulas as loops; and the site before all layers.

Prefill and two cached steps of small decoders: what is kept, the logits, and how long the caches are.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from cuts import DECODER, PREFIX, TOKENS, cut_decoder, select_and_decode
from decoders import IMAGE, VOCAB, Layer, SmallDecoder, feeds, grown
from selecting import Selecting
from towers import session

from lmmprune.errors import InputError
from lmmprune.passes.methods import METHODS
from lmmprune.passes.reduce.reduce_decoder import ReduceDecoder

DEEP = SmallDecoder(layers=5, heads=2, kv_heads=1, width=8)
Options = dict[str, Any]


def cosines(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.array([[a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for b in others] for a in some])


def softmax(rows: np.ndarray) -> np.ndarray:
    parts = np.exp(rows - rows.max(-1, keepdims=True))
    return parts / parts.sum(-1, keepdims=True)


def best(scores: dict[int, float]) -> int:
    return min(scores, key=lambda j: (-scores[j], j))


def greedy_volume(x: np.ndarray, weights: np.ndarray, keep: int) -> list[int]:
    """What a token has outside the span of those chosen, from the projection itself."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    chosen: list[int] = []
    while len(chosen) < keep:
        basis = np.linalg.qr(unit[chosen].T)[0] if chosen else np.zeros((x.shape[1], 0))
        outside = [1.0 if not chosen else np.sum((row - basis @ (basis.T @ row)) ** 2) for row in unit]
        gains = [weights[j] ** 2 * part if part >= 1e-4 else 0.0 for j, part in enumerate(outside)]
        chosen.append(best({j: gain for j, gain in enumerate(gains) if j not in chosen}))
    return chosen


def greedy_determinant(kernel: np.ndarray, keep: int) -> list[int]:
    """By what a token multiplies the determinant with; nothing where it adds no direction."""
    chosen: list[int] = []
    spanning: list[int] = []
    while len(chosen) < keep:
        whole = np.linalg.det(kernel[np.ix_(spanning, spanning)]) if spanning else 1.0
        gains = {}
        for j in (j for j in range(len(kernel)) if j not in chosen):
            some = [*spanning, j]
            part = np.linalg.det(kernel[np.ix_(some, some)]) / whole
            gains[j] = part if part >= 1e-4 * kernel[j, j] and part > 0 else 0.0
        chosen.append(best(gains))
        if gains[chosen[-1]]:
            spanning.append(chosen[-1])
    return chosen


def cdpruner(x: np.ndarray, text: np.ndarray, keep: int, theta: float = 0.5, kernel: str = "exp") -> list[int]:
    likeness = cosines(x, text.mean(0, keepdims=True))[:, 0]
    relevance = (likeness - likeness.min()) / (likeness.max() - likeness.min())
    if kernel == "blend":
        similar = cosines(x, x).astype(np.float64)
        return greedy_determinant((1 - theta) * similar + theta * np.outer(relevance, relevance) * similar, keep)
    return greedy_volume(x, np.exp(theta / (2 * (1 - theta)) * relevance), keep)


def mmtok(x: np.ndarray, text: np.ndarray, keep: int, alpha: float = 0.5, text_temperature: float = 0.02) -> list[int]:
    asked, seen = softmax(cosines(text, x) / text_temperature), softmax(cosines(x, x) / 0.2)
    chosen: list[int] = []

    def value(some: list[int]) -> float:
        return float(asked[:, some].max(1).mean() + alpha * seen[:, some].max(1).mean())

    while len(chosen) < keep:
        chosen.append(best({j: value([*chosen, j]) for j in range(len(x)) if j not in chosen}))
    return chosen


def dart(
    x: np.ndarray, text: np.ndarray, sizes: np.ndarray, text_sizes: np.ndarray, keep: int, image: int, asked: int
) -> list[int]:
    chosen = sorted(range(len(x)), key=lambda j: (-sizes[j], j))[: min(image, keep)]
    largest = sorted(range(len(text)), key=lambda t: (-text_sizes[t], t))[:asked]
    largest += [len(text) - 1] * (asked - len(largest))
    pivots = [*x[chosen], *text[largest]]
    left = keep - len(chosen)
    for p, pivot in enumerate(pivots):
        share = math.ceil((left - (len(chosen) - min(image, keep))) / (len(pivots) - p))
        for _ in range(share):
            likeness = cosines(pivot[None], x)[0]
            chosen.append(best({j: -likeness[j] for j in range(len(x)) if j not in chosen}))
    return chosen


class Oracle:
    """Makes the choice of a method at its sites, and remembers it."""

    def __init__(self, decoder: SmallDecoder, name: str, options: Options, counts: dict[str, int]) -> None:
        self.decoder, self.name, self.options, self.counts = decoder, name, options, counts
        self.tokens = TOKENS
        self.entering: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.kept: dict[str, list[int]] = {}
        self.origin = list(range(TOKENS))

    def __call__(self, site: str, x: np.ndarray, positions: np.ndarray, seen: Layer) -> tuple[np.ndarray, np.ndarray]:
        kind, _, number = site.rpartition("_")
        if kind != "llm_input":
            return x, positions
        layer = int(number)
        if site in self.counts:
            visual, text = x[PREFIX : PREFIX + self.tokens], x[PREFIX + self.tokens :]
            stay = sorted(self.choose(visual, text, self.counts[site], layer, x, seen))
            rows = [*range(PREFIX), *(PREFIX + j for j in stay), *range(PREFIX + self.tokens, len(x))]
            x, positions, self.tokens = x[rows], positions[rows], len(stay)
            self.origin = self.kept[site] = [self.origin[j] for j in stay]
        self.entering[layer] = x, positions
        return x, positions

    def choose(
        self, visual: np.ndarray, text: np.ndarray, keep: int, layer: int, x: np.ndarray, seen: Layer
    ) -> list[int]:
        begin, end = PREFIX, PREFIX + self.tokens
        if self.name == "cdpruner":
            others = x[[*range(begin), *range(end, len(x))]]
            return cdpruner(visual, others if "kernel" in self.options else text, keep, **self.options)
        if self.name == "mmtok":
            return mmtok(visual, text, keep, **self.options)
        if self.name == "dart":
            sizes = np.abs(x).sum(1)
            if self.options.get("form", "layer") == "layer":
                before, at = self.entering[layer - 1]
                heads = (before @ self.decoder.weights()[f"k{layer - 1}"]).reshape(len(x), -1, self.decoder.width)
                sizes = np.abs(self.decoder._turned(heads.transpose(1, 0, 2), at)).sum((0, 2))
            pivots = self.options.get("image_pivots", 4), self.options.get("text_pivots", 4)
            if self.options.get("form", "layer") == "layer":
                gain = self.decoder.weights().get("norm", np.ones(x.shape[1], np.float32))
                return dart(gain * visual, gain * text, sizes[begin:end], sizes[end:], keep, *pivots)
            others = [*range(begin), *range(end, len(x))]
            return dart(visual, x[others], sizes[begin:end], sizes[others], keep, *pivots)
        if self.name == "priortr":
            a = seen.attention.mean(0)
            asked, prior = a[end:, begin:end].mean(0), a[end, begin:end]
            p, q = asked / asked.sum(), prior / prior.sum()
            scores = p * np.log(p / q)
        else:
            scores = np.linalg.norm(x - self.entering[layer - 1][0], axis=1)[begin:end]
        return sorted(range(len(visual)), key=lambda j: (-scores[j], j))[:keep]


CASES: list[tuple[str, Options]] = [
    ("cdpruner", {}),
    ("cdpruner", {"theta": 0.8}),
    ("cdpruner", {"kernel": "blend"}),
    ("cdpruner", {"kernel": "blend", "theta": 1.0}),
    ("mmtok", {}),
    ("mmtok", {"alpha": 2.0, "text_temperature": 0.3}),
    ("dart", {}),
    ("dart", {"form": "embedding"}),
    ("dart", {"form": "embedding", "image_pivots": 0, "text_pivots": 3}),
    ("dart", {"image_pivots": 3, "text_pivots": 0}),
    ("priortr", {}),
    ("v2drop", {}),
    ("v2drop", {"layers": (5, 20)}),
]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
@pytest.mark.parametrize("target", [1, 3, 5, 7])
def test_what_is_kept_is_the_formula(name: str, options: Options, target: int) -> None:
    tail = 2 if target == 5 else 6  # fewer words than DART has pivots
    rng = np.random.default_rng([target, len(name)])
    method = METHODS[name](**options)
    # Cuts behind some layers can't go as low as that on average.
    least = 1 if method.sites == "llm_input_0" or options.get("form") == "embedding" else 5
    stages = method.plan(DEEP.facts(TOKENS), max(target, least))
    ids = [int(i) for i in rng.integers(4, VOCAB, PREFIX + TOKENS + tail)]
    ids[PREFIX : PREFIX + TOKENS] = [IMAGE] * TOKENS
    run: ReduceDecoder | Selecting
    if any(stage.site.before_layers for stage in stages):
        run = call = select_and_decode(DEEP, stages, tokens=TOKENS, prefix=PREFIX, positions="original")
    else:
        model, run = cut_decoder(DEEP, stages, tokens=TOKENS, prefix=PREFIX, positions="original")
        call = session(model)
    oracle = Oracle(DEEP, name, options, {str(s.site): s.keep for s in stages})
    features, at = DEEP.features(TOKENS), np.arange(len(ids))
    found = call(feeds(DEEP, ids, at, features, DEEP.no_cache()))
    logits, past = DEEP.forward(ids, at, features, DEEP.no_cache(), cut=oracle)
    assert oracle.kept
    for site, places in oracle.kept.items():
        assert found[f"kept_indices.{site}"].tolist() == [places], site
    removed = run.removed_before(DEEP.layers)
    for step in range(3):
        np.testing.assert_allclose(found["logits"][0, 0], logits, atol=2e-5)
        lengths = [key.shape[1] for key, _ in grown(DEEP, found)]
        assert lengths == [len(ids) + step - gone for gone in removed]
        word, at = int(rng.integers(4, VOCAB)), np.array([len(ids) + step])
        found = call(feeds(DEEP, [word], at, features, grown(DEEP, found)))
        logits, past = DEEP.forward([word], at, features, past)


@pytest.mark.parametrize("name", ["cdpruner", "mmtok", "dart"])
def test_a_text_of_one_token_will_do(name: str) -> None:
    method = METHODS[name](form="embedding") if name == "dart" else METHODS[name]()
    call = select_and_decode(DECODER, method.plan(DECODER.facts(TOKENS), 5), tokens=TOKENS, prefix=PREFIX)
    ids = [5] * PREFIX + [IMAGE] * TOKENS + [7]
    found = call(feeds(DECODER, ids, np.arange(len(ids)), DECODER.features(TOKENS), DECODER.no_cache()))
    kept = found["kept_indices.llm_input_0"][0]
    assert len(set(kept.tolist())) == 5
    assert np.isfinite(found["logits"]).all()


@pytest.mark.parametrize(("theta", "keep"), [(0.0, 6), (0.5, 7)])
def test_tokens_that_add_no_direction_come_last_and_in_their_order(theta: float, keep: int) -> None:
    """Eight tokens of four directions: once these are taken, rounding must not choose."""
    features = np.repeat(DECODER.features(4), 2, axis=1)
    stages = METHODS["cdpruner"](theta=theta).plan(DECODER.facts(TOKENS), keep)
    call = select_and_decode(DECODER, stages, tokens=TOKENS, prefix=PREFIX)
    ids = [5] * PREFIX + [IMAGE] * TOKENS + [7, 9]
    found = call(feeds(DECODER, ids, np.arange(len(ids)), features, DECODER.no_cache()))
    assert found["kept_indices.llm_input_0"].tolist() == [sorted([0, 2, 4, 6, *[1, 3, 5, 7][: keep - 4]])]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cdpruner", {"theta": 1.0}, "theta=1 makes weights without end"),
        ("cdpruner", {"theta": 1.5, "kernel": "blend"}, "theta=1.5"),
        ("cdpruner", {"kernel": "mix"}, "kernel=mix: expected"),
        ("cdpruner", {"theta": -0.1}, "theta=-0.1"),
        ("mmtok", {"alpha": -1.0}, "alpha=-1: expected a number, 0 or more"),
        ("mmtok", {"vision_temperature": 0.0}, "vision_temperature=0: expected a positive number"),
        ("dart", {"image_pivots": 0, "text_pivots": 0}, "image_pivots=0, text_pivots=0: expected 0 or more, and one"),
        ("dart", {"text_pivots": -1}, "text_pivots=-1"),
        ("dart", {"layer": 32}, "layers 32: expected ascending numbers"),
        ("priortr", {"layer": 0}, "layers 0: expected ascending numbers"),
        ("v2drop", {"layers": (17, 3)}, "layers 17,3: expected ascending numbers"),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: Options, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        METHODS[name](**options).plan(DEEP.facts(TOKENS), 4)
    assert "\n" not in str(caught.value)
