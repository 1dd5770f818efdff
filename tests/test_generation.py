"""Generation settings: what an export makes of them, and the run-time's tokens against transformers' processors."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import prompt_checkpoints as pc
import pytest
import runtime_fixtures as fx
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from lmmprune.compiler.assets.checkpoint_tokenizer import checkpoint_tokenizer
from lmmprune.compiler.assets.generation import Generation, generation
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.runtime.encoded import Encoded
from lmmprune.compiler.runtime.logits import LogitsRules
from lmmprune.compiler.runtime.sampling import GREEDY
from lmmprune.errors import BundleError, ModelError

VOCAB = 24
EOS = 2
PROMPT = [1, 7, 8, 9, 7, 8, 23, 3]
STEPS = 40

CASES: dict[str, dict[str, Any]] = {
    "none": {},
    "repetition": {"repetition_penalty": 1.05},
    "strong repetition": {"repetition_penalty": 1.8},
    "rewarded repetition": {"repetition_penalty": 0.7},
    "unigrams": {"no_repeat_ngram_size": 1},
    "bigrams": {"no_repeat_ngram_size": 2},
    "trigrams": {"no_repeat_ngram_size": 3},
    "long n-grams": {"no_repeat_ngram_size": 30},
    "bad words": {"bad_words_ids": [[5], [7, 8], [9, 9, 9], [EOS]]},
    "biases": {"sequence_bias": [[[5], 2.5], [[7, 8], -3.0], [[4, 6], 9.0]]},
    "shortest answer": {"min_new_tokens": 9},
    "shortest text": {"min_length": 30},
    "forced end": {"forced_eos_token_id": EOS},
    "suppressed": {"suppress_tokens": [4, 5, 6, 10]},
    "suppressed first": {"begin_suppress_tokens": [4, 5, 6, 10, 11, 12]},
    "all": {
        "repetition_penalty": 1.3, "no_repeat_ngram_size": 4, "bad_words_ids": [[5], [11, 12]], "min_new_tokens": 5,
        "forced_eos_token_id": EOS, "suppress_tokens": [4], "begin_suppress_tokens": [6],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def models() -> list[LlamaForCausalLM]:
    found = []
    for seed in range(4):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=VOCAB, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=128, eos_token_id=EOS, bos_token_id=1, pad_token_id=0,
        )  # fmt: skip
        model = LlamaForCausalLM(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.7)
        found.append(model)
    return found


@pytest.mark.parametrize("name", sorted(CASES))
def test_answers_are_those_of_generate(name: str, models: list[LlamaForCausalLM], tmp_path: Path) -> None:
    settings = CASES[name]
    manifest = dataclasses.replace(
        fx.make_bundle(tmp_path / "out").manifest, schedule=(), image_tokens=0, generation={"applied": settings}
    )
    manifest = dataclasses.replace(manifest, prompt=dataclasses.replace(manifest.prompt, eos_token_ids=(EOS,)))
    prompt = Encoded(input_ids=np.array([PROMPT], np.int64), spans=((0, 0),))
    changed = 0
    for model in models:
        ids = torch.tensor([PROMPT])
        config = GenerationConfig(eos_token_id=EOS, pad_token_id=0, max_new_tokens=STEPS, do_sample=False, **settings)
        expected = model.generate(ids, generation_config=config)[0, len(PROMPT) :].tolist()
        choose, mine, plain = LogitsRules(manifest).answer(prompt, STEPS, GREEDY.start()), list(PROMPT), list(PROMPT)
        for rule, row in ((choose, mine), (lambda logits: int(logits.argmax()), plain)):
            while len(row) < len(PROMPT) + STEPS and (len(row) == len(PROMPT) or row[-1] != EOS):
                with torch.no_grad():
                    row.append(rule(model(torch.tensor([row])).logits[0, -1].numpy()))
        assert mine[len(PROMPT) :] == expected
        changed += mine != plain
    assert bool(changed) is (name not in ("none", "long n-grams")), "the setting changes no answer: a vacuous case"


def read(folder: Path, files: dict[str, Any], **special: Any) -> Generation:
    made = pc.checkpoint(folder / "model", files, special=special)
    return generation(made, checkpoint_tokenizer(made))


def test_settings_are_named_with_their_values(tmp_path: Path) -> None:
    settings = {
        "repetition_penalty": 1.05, "num_beams": 4, "do_sample": True, "temperature": 0.1, "top_k": 1, "top_p": 0.001,
        "no_repeat_ngram_size": 0, "min_length": 0, "guidance_scale": None, "forced_bos_token_id": 1,
    }  # fmt: skip
    found = read(tmp_path, {"generation_config.json": settings})
    assert (found.applied, found.ignored) == ({"repetition_penalty": 1.05}, {"num_beams": 4})
    applied, ignored, drawn = found.warnings
    assert "generation_config.json sets repetition_penalty=1.05: answers follow it" in applied
    assert "num_beams=4, which 'run' doesn't follow" in ignored
    assert "do_sample, temperature=0.1, top_k=1, top_p=0.001" in drawn


def test_neutral_settings_say_nothing(tmp_path: Path) -> None:
    settings = {
        "repetition_penalty": 1.0,
        "num_beams": 1,
        "do_sample": False,
        "temperature": 0.7,
        "bad_words_ids": None,
    }
    found = read(tmp_path, {"generation_config.json": settings})
    assert (found.applied, found.ignored, found.warnings) == ({}, {}, ())


@pytest.mark.parametrize("end", [7, [7, 9]])
@pytest.mark.parametrize("place", ["whole", "text", "generation"])
def test_settings_come_from_where_generate_reads_them(end: Any, place: str, tmp_path: Path) -> None:
    """transformers makes the same of the files."""
    stated = {"eos_token_id": end, "repetition_penalty": 1.5}
    folder = pc.checkpoint(tmp_path / "model", {"generation_config.json": None})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if place == "generation":
        config |= {"eos_token_id": 3, "repetition_penalty": 9.0}
        (folder / "generation_config.json").write_text(json.dumps(stated), encoding="utf-8")
    elif place == "whole":
        config |= stated
        config["text_config"] |= {"eos_token_id": 3, "repetition_penalty": 9.0}
    else:
        config["text_config"] |= stated
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    theirs = (
        GenerationConfig.from_pretrained(folder)
        if place == "generation"
        else GenerationConfig.from_pretrained(folder, config_file_name="config.json", _from_model_config=True)
    )
    found = generation(folder, checkpoint_tokenizer(folder))
    assert theirs.eos_token_id in (end, 7)
    assert found.end_tokens == (tuple(end) if isinstance(end, list) else (end,))
    assert found.applied["repetition_penalty"] == theirs.repetition_penalty == 1.5


def test_an_end_that_generate_would_not_find_is_said(tmp_path: Path) -> None:
    found = read(tmp_path / "a", {"generation_config.json": {"eos_token_id": None}, "config.json": {"eos_token_id": 5}})
    assert found.end_tokens == (5,)
    assert "answers end with token 5, as config.json says" in found.warnings[0]
    found = read(tmp_path / "b", {"generation_config.json": {"eos_token_id": None}})
    assert found.end_tokens == (2,)
    assert "answers end with the tokenizer's '</s>' (2)" in found.warnings[0]


def test_no_end_at_all_says_what_to_add(tmp_path: Path) -> None:
    files = {"generation_config.json": None, "tokenizer_config.json": {"eos_token": None, "tokenizer_class": "X"}}
    with pytest.raises(ModelError, match=re.escape("write the end token's id into generation_config.json, as {\"eos_")):
        read(tmp_path, files)


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": -1.0}, {"repetition_penalty": "1.1"}, {"no_repeat_ngram_size": 1.5},
        {"bad_words_ids": [5]}, {"suppress_tokens": 5}, {"sequence_bias": [[5, 1.0]]}, {"forced_eos_token_id": "x"},
        {"eos_token_id": "x"}, {"eos_token_id": [-1]}, {"min_new_tokens": -3},
    ],
)  # fmt: skip
def test_settings_of_another_form_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    (name,) = settings
    with pytest.raises(ModelError, match=f"{name} .*expected") as caught:
        read(tmp_path, {"generation_config.json": settings})
    assert "\n" not in str(caught.value)


def test_a_bundle_answers_by_its_settings(tmp_path: Path) -> None:
    """The run-time asks them, counting the prompt's tokens."""
    from lmmprune.compiler.runtime.runtime import Runtime

    def tokens(settings: dict[str, Any]) -> list[int]:
        bundle: Bundle = fx.make_bundle(
            tmp_path / f"out{len(settings)}", keep=4, generation={"applied": settings, "ignored": {}}
        )
        answer = Runtime(bundle).answer(fx.picture(1, 5), "what?", 8, stop_at_eos=False)
        _ = answer.text
        return answer.tokens

    plain = tokens({})
    changed = tokens({"suppress_tokens": plain[:1]})
    assert plain[0] not in changed
    assert changed != plain


WRONG = {
    "no_such_setting": (3, "has 'no_such_setting', known: sequence_bias"),
    "repetition_penalty": ("x", "repetition_penalty in the bundle's manifest .* is 'x': expected a number"),
    "suppress_tokens": ([-1], "suppress_tokens in .*: expected token ids"),
    "forced_eos_token_id": (10**6, "names the token 1000000, expected one of 0..258"),
    "sequence_bias": ([[[10**6], 1.0]], "names the token 1000000"),
}


@pytest.mark.parametrize("name", WRONG)
def test_settings_of_a_manifest_that_make_no_sense(name: str, tmp_path: Path) -> None:
    value, message = WRONG[name]
    bundle = fx.make_bundle(tmp_path / "out", keep=4, generation={"applied": {name: value}, "ignored": {}})
    with pytest.raises(BundleError, match=message):
        LogitsRules(bundle.manifest)
