"""The reference itself: uncut it is the model, cut it is what masks and caches give, and its rules hold by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from random_llava import IMAGE_TOKEN
from reference_model import PREFIX, STEPS, TAIL, N, model, pixels, spoken
from transformers import DynamicCache

from lmmprune.compiler.verify.reference import Cut, CutRefused, Said, see
from lmmprune.compiler.verify.reference.cut import CLS_METHODS
from lmmprune.compiler.verify.reference.layer_attention import vision_attention
from lmmprune.compiler.verify.reference.threads import one_thread

OPTIONS: dict[str, dict[str, Any]] = {
    "vtc-cls": {"first_layer": 1},
    "freepruner": {"pivot_fraction": 0.5, "shallow_layer": 0},
    "ficoco-v": {"targets": "quantile"},
    "ficoco-vl": {"targets": "quantile", "score": "logits"},
    "dart": {"form": "layer", "image_pivots": 2, "text_pivots": 3},
}
ENCODER = [Cut("vision_layer_1", 27), Cut("vision_layer_2", 20)]
INSIDE = [Cut("llm_input_1", 15), Cut("llm_input_3", 9)]
MERGED = [Cut("llm_layer_0", 15), Cut("llm_layer_2", 9)]
EMBEDDED = [Cut("llm_input_0", 9)]
PROJECTED = [Cut("projector_output", 20)]
VISION_CUTS = {"divprune": PROJECTED, "dpp": PROJECTED, "ficoco-v": ENCODER, "ficoco-vl": ENCODER, "tome": ENCODER}
DECODER_CUTS = {
    **dict.fromkeys(["fastv", "sparsevlm", "pyramiddrop", "aim", "inflection", "dart", "priortr", "v2drop"], INSIDE),
    **dict.fromkeys(["cdpruner", "mmtok"], EMBEDDED),
    **dict.fromkeys(["ficoco-l", "ficoco-vl"], MERGED),
}
OUTPUT = ["random", "uniform", "cls", "vtc-cls", "freepruner", "prumerge", "prumerge+", "visionzip", "vispruner"]
OUTPUT += ["scope", "downsample"]
VISION_CUTS |= {method: [Cut("vision_output", 20)] for method in [*OUTPUT, "aim", "inflection"]}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def cached(
    llava: Any, features: np.ndarray, cuts: dict[int, list[int]], said: Said, *, contiguous: bool, start: list[int]
) -> np.ndarray:
    """Greedy logits by HF's own layers and cache; before layer l the image tokens cuts[l] are left."""
    language, cache, logits = llava.model.language_model, DynamicCache(), []
    words = language.embed_tokens.weight
    x = torch.cat([words[PREFIX], torch.from_numpy(features), words[TAIL]])[None]
    numbers = torch.tensor([start])
    place = [("image", i) if 0 <= i < len(features) else ("text", i) for i in range(-len(PREFIX), x.shape[1] - 3)]
    following = start[-1] + 1
    for token in said.tokens:
        for number, layer in enumerate(language.layers):
            if number in cuts and x.shape[1] > 1:
                rows = [r for r, (kind, i) in enumerate(place) if kind == "text" or i in cuts[number]]
                x, numbers, place = x[:, rows], numbers[:, rows], [place[r] for r in rows]
                numbers = torch.arange(len(rows))[None] if contiguous else numbers
            elif x.shape[1] == 1:
                past = cache.get_seq_length(number)
                numbers = torch.tensor([[past if contiguous and number >= min(cuts) else following]])
            size = x.shape[1]
            mask = torch.full((1, 1, size, size), -torch.inf).triu(1) if size > 1 else None
            angles = language.rotary_emb(x, numbers)
            x = layer(x, attention_mask=mask, past_key_values=cache, position_embeddings=angles, use_cache=True)
        following += len(logits) > 0
        logits.append(llava.lm_head(language.norm(x))[0, -1].numpy())
        x = words[[token]][None]
    return np.stack(logits)


@pytest.mark.parametrize("has_cls", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_cuts_it_is_the_model(has_cls: bool, dtype: torch.dtype) -> None:
    llava, picture = model(has_cls, dtype), pixels(2).to(dtype)
    seen = see(llava, "random", {}, [], picture)
    expected = torch.stack(list(llava.get_image_features(picture).pooler_output)).numpy()
    assert seen.features.dtype == expected.dtype
    np.testing.assert_allclose(seen.features, expected, atol=1e-5)
    said = spoken(llava, "fastv", [], seen.features[0])
    out = llava.generate(
        input_ids=torch.tensor([[*PREFIX, *[IMAGE_TOKEN] * N, *TAIL]]),
        pixel_values=picture[:1],
        max_new_tokens=1 + STEPS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert said.tokens == out.sequences[0, -1 - STEPS :].tolist()
    np.testing.assert_allclose(said.logits, torch.cat(out.logits).numpy(), atol=1e-5)


@pytest.mark.parametrize("llm", ["contiguous", "original"])
@pytest.mark.parametrize("vision", ["contiguous", "original"])
def test_the_full_rerun_equals_a_cache(vision: str, llm: str) -> None:
    llava = model(True)
    seen = see(llava, "cls", {}, [Cut("vision_output", 20)], pixels())
    kept = seen.kept["vision_output"][0]
    said = spoken(llava, "fastv", INSIDE, seen.features[0], kept, vision=vision, llm=llm)
    image = [3 + int(i) for i in kept] if vision == "original" else list(range(3, 23))
    behind = 3 + (N if vision == "original" else 20)
    start = [0, 1, 2, *image, *range(behind, behind + len(TAIL))]
    cuts = {1: said.kept["llm_input_1"].tolist(), 3: said.kept["llm_input_3"].tolist()}
    logits = cached(llava, seen.features[0], cuts, said, contiguous=llm == "contiguous", start=start)
    np.testing.assert_allclose(said.logits, logits, atol=1e-5)


@pytest.mark.parametrize("has_cls", [True, False])
@pytest.mark.parametrize("method", sorted(VISION_CUTS | DECODER_CUTS))
def test_every_method_runs_and_float64_agrees(method: str, has_cls: bool) -> None:
    if method in CLS_METHODS and not has_cls:
        with pytest.raises(ValueError, match="needs a CLS token"):
            see(model(has_cls), method, {}, VISION_CUTS[method], pixels())
        return
    results = []
    for dtype in (torch.float32, torch.float64):
        llava = model(has_cls, dtype)
        seen = see(llava, method, OPTIONS.get(method, {}), VISION_CUTS.get(method, []), pixels(2).to(dtype))
        assert seen.features.shape[1] == (20 if method in VISION_CUTS else N)
        for cut in VISION_CUTS.get(method, []):
            kept = seen.kept[cut.site]
            assert kept.shape == (2, cut.keep)
            places = kept[kept >= 0]
            assert len(places) == kept.size - 2 * (method.startswith("prumerge") or (method == "visionzip" and has_cls))
            # ToMe's list is in raster order again behind its last cut.
            if not method.startswith("prumerge") and method != "visionzip" and (method, cut) != ("tome", ENCODER[0]):
                assert (np.diff(kept) > 0).all()
        cuts, own = DECODER_CUTS.get(method, []), OPTIONS.get(method, {})
        said = spoken(llava, method, cuts, seen.features[1], options=own if method == "dart" else {})
        for cut in DECODER_CUTS.get(method, []):
            assert len(said.kept[cut.site]) == cut.keep
            assert (np.diff(said.kept[cut.site]) > 0).all()
        assert min(seen.margin, said.margin) > 5e-6
        results.append((seen, said))
    (seen, said), (precise, also) = results
    assert all((seen.kept[site] == precise.kept[site]).all() for site in seen.kept)
    assert all((said.kept[site] == also.kept[site]).all() for site in said.kept)
    np.testing.assert_allclose(seen.features, precise.features, atol=1e-4)
    np.testing.assert_allclose(said.logits, also.logits, atol=1e-4)


def test_generated_tokens_dont_choose_and_pruned_text_spares_the_special() -> None:
    llava = model(True)
    features = see(llava, "inflection", {}, [Cut("vision_output", 20)], pixels()).features[0]
    cuts = [Cut("llm_input_2", 7)]
    one, more = (spoken(llava, "inflection", cuts, features, steps=steps) for steps in (0, 4))
    np.testing.assert_array_equal(one.kept["llm_input_2"], more.kept["llm_input_2"])
    # Of five tokens the first and the last stay, and so do the two special ones: only 9 can go.
    pruned = spoken(llava, "inflection", cuts, features, options={"prune_text": 1}, special_ids={8, 10})
    assert abs(pruned.logits - more.logits[: 1 + STEPS]).max() > 1e-3
    with pytest.raises(ValueError, match="1 tokens of the tail may go"):
        spoken(llava, "inflection", cuts, features, options={"prune_text": 2}, special_ids={8, 10})


def test_following_its_own_tokens_gives_the_same_in_one_run() -> None:
    llava = model(True)
    features = see(llava, "inflection", {}, [Cut("vision_output", 20)], pixels()).features[0]
    cuts, how = [Cut("llm_input_2", 7)], {"options": {"prune_text": 1}, "llm": "original"}
    greedy = spoken(llava, "inflection", cuts, features, **how)
    followed = spoken(llava, "inflection", cuts, features, **how, forced=greedy.tokens)
    assert followed.tokens == greedy.tokens
    np.testing.assert_array_equal(followed.kept["llm_input_2"], greedy.kept["llm_input_2"])
    np.testing.assert_allclose(followed.logits, greedy.logits, atol=1e-5)
    # The last token is followed by nothing; every other one changes what comes behind it.
    others = [*greedy.tokens[:1], (greedy.tokens[1] + 1) % 36 + 4, *greedy.tokens[2:]]
    other = spoken(llava, "inflection", cuts, features, **how, forced=others)
    np.testing.assert_allclose(other.logits[:2], greedy.logits[:2], atol=1e-5)
    assert abs(other.logits[2:] - greedy.logits[2:]).max(axis=1).min() > 1e-3
    with pytest.raises(CutRefused, match="2 tokens to follow, 4 wanted"):
        spoken(llava, "inflection", cuts, features, forced=[5, 6])


def test_positions_that_dont_exist_are_refused() -> None:
    seen = see(model(True), "visionzip", {}, [Cut("vision_output", 5)], pixels())
    with pytest.raises(ValueError, match="5 features, the last one's place is 36, 36 patches"):
        spoken(model(True), "visionzip", [], seen.features[0], np.array([-1, 1, 2, 3, 36]), vision="original")
    features = see(model(True), "uniform", {}, [], pixels()).features[0]
    for method, site in (("cdpruner", "llm_input_2"), ("dart", "llm_input_0")):
        with pytest.raises(CutRefused, match=f"nothing to score {site} by"):
            spoken(model(True), method, [Cut(site, 5)], features)
    with pytest.raises(ValueError, match="has no cut at"):
        see(model(True), "cls", {}, [Cut("vision_layer_1", 5)], pixels())
    with pytest.raises(ValueError, match="keep 37 of 36"):
        see(model(True), "cls", {}, [Cut("vision_output", 37)], pixels())


def test_prumerge_gathers_by_hand() -> None:
    llava = model(True)
    seen = see(llava, "prumerge", {}, [Cut("vision_output", 5)], pixels())
    tower = llava.model.vision_tower
    y = tower(pixels(), output_hidden_states=True).hidden_states[-2][0]
    layer = tower.encoder.layers[-1]
    normed = layer.layer_norm1(y)
    q, k = layer.self_attn.q_proj(normed), layer.self_attn.k_proj(normed)
    a = torch.softmax(q[0] @ k.T / 16**0.5, dim=0)[1:]
    order = a.argsort(descending=True)[:4]
    unit = torch.nn.functional.normalize(k[1:], dim=-1)
    rows = []
    for i in order:
        near = (unit @ unit[i]).argsort(descending=True)[1:33]
        rows.append(y[1 + i] + a[near] @ y[1 + near])
    rest = [j for j in range(N) if j not in order]
    rows.append(a[rest] @ y[1:][rest])
    expected = llava.model.multi_modal_projector(torch.stack(rows)).numpy()
    assert seen.kept["vision_output"][0].tolist() == [*order.tolist(), -1]
    np.testing.assert_allclose(seen.features[0], expected, atol=1e-5)


def test_sizes_are_added_to_the_logits() -> None:
    # A token of size 2 counts as two equal tokens would.
    layer = model(True).model.vision_tower.encoder.layers[0].self_attn
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    once, _ = vision_attention(layer, x, [1.0, 2.0, 1.0])
    twice, _ = vision_attention(layer, x[[0, 1, 1, 2]], [1.0] * 4)
    torch.testing.assert_close(once, twice[[0, 1, 3]])
