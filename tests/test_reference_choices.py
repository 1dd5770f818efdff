"""The reference's choices are those by the model's own attention and hidden states, as transformers tells them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from reference_model import PREFIX, TAIL, N, model, pixels, spoken

from lmmprune.compiler.verify.reference import Cut, knee, see
from lmmprune.compiler.verify.reference.threads import one_thread


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.mark.parametrize("has_cls", [True, False])
def test_choices_equal_those_by_the_models_own_attention(has_cls: bool) -> None:
    llava, picture, cut = model(has_cls), pixels(2), [Cut("vision_output", 20)]
    uncut = see(llava, "random", {}, [], picture).features
    attention = [a.mean(dim=1) for a in llava.model.vision_tower(picture, output_attentions=True).attentions]
    scores = {"freepruner": (attention[2].sum(dim=1) - attention[2].diagonal(dim1=1, dim2=2))[:, has_cls:]}
    if has_cls:
        scores |= dict.fromkeys(("cls", "inflection"), attention[2][:, 0, 1:])
        scores |= {"vtc-cls": (attention[1] + attention[2])[:, 0, 1:]}
    for method, score in scores.items():
        options = {"freepruner": {"pivot_fraction": 1.0, "shallow_layer": 0}, "vtc-cls": {"first_layer": 1}}
        seen = see(llava, method, options.get(method, {}), cut, picture)
        assert (seen.kept["vision_output"] == score.topk(20).indices.sort().values.numpy()).all()
        np.testing.assert_array_equal(
            seen.features, [f[k] for f, k in zip(uncut, seen.kept["vision_output"], strict=True)]
        )


def test_decoder_choices_equal_those_by_the_models_own_attention() -> None:
    llava = model(True)
    features = see(llava, "fastv", {}, [], pixels()).features
    words = llava.model.language_model.embed_tokens.weight
    x = torch.cat([words[PREFIX], torch.from_numpy(features[0]), words[TAIL]])[None]
    attention = llava.model.language_model(inputs_embeds=x, output_attentions=True).attentions[1][0].mean(dim=0)
    states = llava.model.language_model(inputs_embeds=x, output_attentions=True, output_hidden_states=True)
    ahead = states.attentions[2][0].mean(dim=0)
    rows = {"fastv": attention[-1:], "inflection": attention[-len(TAIL) :], "pyramiddrop": ahead[-1:]}
    for method, row in rows.items():
        said = spoken(llava, method, [Cut("llm_input_2", 12)], features[0])
        score = row[:, 3 : 3 + N].mean(dim=0)
        assert said.kept["llm_input_2"].tolist() == score.topk(12).indices.sort().values.tolist()
    image_rows = slice(3, 3 + N)
    moved = (states.hidden_states[2] - states.hidden_states[1])[0, image_rows].norm(dim=-1)
    p, q = (attention[row, image_rows] for row in (slice(-len(TAIL), None), slice(3 + N, 4 + N)))
    p, q = (one.mean(dim=0) / one.mean(dim=0).sum() for one in (p, q))
    for method, score in {"v2drop": moved, "priortr": p * (p / q).log()}.items():
        said = spoken(llava, method, [Cut("llm_input_2", 12)], features[0])
        assert said.kept["llm_input_2"].tolist() == score.topk(12).indices.sort().values.tolist()
    said = spoken(llava, "ficoco-l", [Cut("llm_layer_1", 12)], features[0], options={"beta": 0.3})
    image = attention[3 : 3 + N, 3 : 3 + N]
    s = 0.3 * image.mean(dim=1) - 0.7 * attention[-len(TAIL) :, 3 : 3 + N].mean(dim=0)
    assert said.kept["llm_layer_1"].tolist() == (-s).topk(12).indices.sort().values.tolist()


def test_knee_of_pictures() -> None:
    attention = model(True).model.vision_tower(pixels(2), output_attentions=True).attentions[2]
    s = attention.mean(dim=1)[:, 0, 1:].sort(descending=True).values
    chord = s[:, :1] + (s[:, -1:] - s[:, :1]) * torch.arange(N) / (N - 1)
    counts = knee(model(True), pixels(2))
    assert counts.dtype == np.int64
    assert counts.tolist() == ((chord - s).argmax(dim=1) + 1).tolist()
    with pytest.raises(ValueError, match="needs a CLS token"):
        knee(model(False), pixels())
