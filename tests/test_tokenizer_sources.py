"""Where a tokenizer comes from, and which of its tokens marks the picture."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import prompt_checkpoints as pc
import pytest
import random_shuffles
from tokenizers import pre_tokenizers

from lmmprune.compiler.assets.checkpoint_tokenizer import checkpoint_tokenizer
from lmmprune.compiler.assets.text_layout import text_layout
from lmmprune.compiler.assets.write_assets import write_assets
from lmmprune.compiler.bundle.bundle import TOKENIZER, Bundle
from lmmprune.errors import ModelError
from lmmprune.models.source import resolve

TEMPLATE = {"chat_template.jinja": pc.PARTS}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return pc.bundle(tmp_path_factory.mktemp("sources"))


def test_an_unchanged_tokenizer_is_copied(tmp_path: Path) -> None:
    folder = pc.checkpoint(tmp_path / "model", TEMPLATE)
    assert checkpoint_tokenizer(folder).text == (folder / TOKENIZER).read_text(encoding="utf-8")


def test_what_transformers_puts_into_it_is_written(bundle: Bundle, tmp_path: Path) -> None:
    """A token of tokenizer_config.json that tokenizer.json lacks becomes one, as there."""
    files = {**TEMPLATE, "tokenizer_config.json": {"sep_token": "<sep>"}}
    folder = pc.checkpoint(tmp_path / "model", {**files, "chat_template.jinja": "{{ sep_token }}" + pc.PARTS})
    _, prompter = pc.export(folder, bundle)
    ids = prompter.encode("what?").input_ids[0].tolist()
    assert ids == pc.theirs(folder, "what?")
    assert checkpoint_tokenizer(folder).tokenizer.token_to_id("<sep>") in ids


def test_merges_are_converted(tmp_path: Path) -> None:
    """As for Qwen's tokenizers without tokenizer.json; InternVL has the same class."""
    random_shuffles.save_internvl(tmp_path)
    whole = checkpoint_tokenizer(tmp_path)
    raw = json.loads((tmp_path / TOKENIZER).read_text(encoding="utf-8"))
    words = raw["model"]["vocab"]
    assert set(pre_tokenizers.ByteLevel.alphabet()) <= set(words)
    (tmp_path / TOKENIZER).unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(words), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    rows = {str(row["id"]): {key: row[key] for key in row if key != "id"} for row in raw["added_tokens"]}
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({**config, "tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": rows}), encoding="utf-8"
    )
    found = checkpoint_tokenizer(tmp_path)
    for text in ("what is it?", "<img><IMG_CONTEXT></img>é\n\n 12"):
        assert found.tokenizer.encode(text).ids == whole.tokenizer.encode(text).ids
    assert whole.special.items() <= found.special.items()


def test_no_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = pc.checkpoint(tmp_path / "model", TEMPLATE)
    (folder / TOKENIZER).unlink()
    with pytest.raises(ModelError, match=r"no tokenizer in .*model.*tokenizer.model.*save the model's fast tokenizer"):
        checkpoint_tokenizer(folder)
    (folder / TOKENIZER).write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match=r"can't be used .*: download it again"):
        checkpoint_tokenizer(folder)


def test_a_sentencepiece_model_that_cannot_be_read_says_what_to_do(tmp_path: Path) -> None:
    folder = pc.checkpoint(tmp_path / "model", TEMPLATE)
    (folder / TOKENIZER).unlink()
    (folder / "tokenizer.model").write_bytes(b"\x00\x01")
    missing = importlib.util.find_spec("sentencepiece") is None
    advice = "pip install sentencepiece" if missing else "save it with save_pretrained, which writes tokenizer.json"
    with pytest.raises(ModelError, match=f"can't be converted .*{advice}") as caught:
        checkpoint_tokenizer(folder)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_transformers_refuses_is_used_as_it_is(bundle: Bundle, tmp_path: Path) -> None:
    files = {"tokenizer_config.json": {"bos_token": {"content": "<s>", "__type": "AddedToken"}, "pad_token": 3}}
    folder = pc.checkpoint(tmp_path / "model", {**files, "chat_template.jinja": "{{ bos_token }}" + pc.PARTS})
    assets, prompter = pc.export(folder, bundle)
    assert "transformers can't load the tokenizer" in assets.warnings[0]
    assert assets.prompt.template.startswith("<s>user")
    assert prompter.encode("what?").input_ids[0].tolist().count(1) == 1


@pytest.mark.parametrize(
    ("config", "files", "expected"),
    [
        ({}, {}, ("<image>", 4)),
        ({"image_token_index": None, "image_token_id": 4}, {}, ("<image>", 4)),
        ({"image_token_index": None}, {}, ("<image>", 4)),
        ({"image_token_index": 5}, {"processor_config.json": {"image_token": "<end>"}}, ("<end>", 5)),
        ({"image_token_index": 5}, {"tokenizer_config.json": {"image_token": "<end>"}}, ("<end>", 5)),
    ],
)
def test_the_placeholder_is_config_and_tokenizers_own(
    config: dict[str, Any], files: dict[str, Any], expected: tuple[str, int], bundle: Bundle, tmp_path: Path
) -> None:
    template = pc.PARTS.replace("<image>", expected[0])
    folder = pc.checkpoint(tmp_path / "model", {**files, "chat_template.jinja": template}, config=config)
    assets, prompter = pc.export(folder, bundle)
    assert (assets.prompt.image_token, assets.prompt.image_token_id) == expected
    assert prompter.encode("what?").input_ids[0].tolist() == pc.theirs(folder, "what?")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_token_index": 5}, "says that token 5 marks the picture's place, in the tokenizer that is '<end>' and"
         " '<image>' is 4: they must be of one model"),
        ({"image_token_index": 999}, "in the tokenizer that is nothing and '<image>' is 4"),
    ],
)  # fmt: skip
def test_two_placeholders_are_refused(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = pc.checkpoint(tmp_path / "model", TEMPLATE, config=config)
    with pytest.raises(ModelError, match=re.escape(message)):
        write_assets(resolve(str(folder), weights="dummy"), tmp_path)


def test_a_vocabulary_without_placeholder_is_refused(tmp_path: Path) -> None:
    tokenizer = pc.letters(bos=True)
    raw = json.loads(tokenizer.to_str())
    folder = pc.checkpoint(tmp_path / "model", TEMPLATE, config={"image_token_index": None})
    raw["added_tokens"] = [row for row in raw["added_tokens"] if row["content"] != "<image>"]
    raw["model"]["vocab"] = {key: value for key, value in raw["model"]["vocab"].items() if key != "<image>"}
    (folder / TOKENIZER).write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(ModelError, match=r"has no token '<image>'.*and config.json has no image_token_id"):
        write_assets(resolve(str(folder), weights="dummy"), tmp_path)


def test_a_placeholder_that_is_no_token_of_its_own_is_refused(tmp_path: Path) -> None:
    """In the vocabulary, but not where texts are split: transformers' processor doesn't find it either."""
    raw = json.loads(pc.letters(bos=True).to_str())
    raw["added_tokens"] = [row for row in raw["added_tokens"] if row["content"] != "<image>"]
    folder = pc.checkpoint(tmp_path / "model", TEMPLATE)
    (folder / TOKENIZER).write_text(json.dumps(raw), encoding="utf-8")
    prompt = write_assets(resolve(str(folder), weights="dummy"), tmp_path).prompt
    with pytest.raises(ModelError, match=r"doesn't find '<image>' in .*: it must be a token of its own"):
        text_layout(prompt, tmp_path / TOKENIZER, in_decoder=False)
