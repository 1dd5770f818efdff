from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runtime_fixtures as fx
from edit_json import edit
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lmmprune.compiler.bundle.bundle import TOKENIZER, Bundle
from lmmprune.compiler.bundle.manifest import Manifest, Prompt
from lmmprune.compiler.runtime.prompt import Prompter
from lmmprune.compiler.runtime.text_stream import TextStream
from lmmprune.errors import BundleError, InputError


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return fx.make_bundle(tmp_path_factory.mktemp("prompt") / "out", keep=4)


@pytest.fixture(scope="module")
def prompter(bundle: Bundle) -> Prompter:
    return Prompter(bundle.manifest, bundle.file(TOKENIZER))


def text_ids(text: str) -> list[int]:
    return list(text.encode())


def test_template_and_image_tokens(prompter: Prompter) -> None:
    encoded = prompter.encode("hi {prompt} {x}")
    expected = [fx.BOS, *text_ids("USER: "), *[fx.IMAGE] * 4, *text_ids("\nhi {prompt} {x} ASSISTANT:")]
    assert encoded.input_ids.tolist() == [expected]
    assert encoded.input_ids.dtype == np.int64
    assert (encoded.image_start, encoded.image_tokens, encoded.length) == (7, 4, len(expected))


def test_equals_tokenizing_the_expanded_prompt(prompter: Prompter) -> None:
    expanded = "USER: " + "<image>" * 4 + "\nwhat? ASSISTANT:"
    assert prompter.encode("what?").input_ids[0].tolist() == fx.tokenizer().encode(expanded).ids


@pytest.mark.parametrize("question", ["<image>", "a <image><image> b", "end</s>", "<s>x", "é <image> ü"])
def test_special_tokens_of_the_user_stay_text(prompter: Prompter, question: str) -> None:
    ids = prompter.encode(question).input_ids[0].tolist()
    assert ids.count(fx.IMAGE) == 4
    assert ids == [fx.BOS, *text_ids("USER: "), *[fx.IMAGE] * 4, *text_ids(f"\n{question} ASSISTANT:")]


def test_reserved_token_that_cannot_be_spelled(bundle: Bundle, tmp_path: Path) -> None:
    tokenizer = fx.tokenizer()
    tokenizer.add_tokens(["<plain-image>"])  # not special: the tokenizer has no other spelling for it
    tokenizer.save(str(tmp_path / "t.json"))
    prompt = Prompt(
        template="<plain-image>{prompt}", image_token="<plain-image>", image_token_id=259, eos_token_ids=(fx.EOS,)
    )
    manifest = type(bundle.manifest)(**{**vars(bundle.manifest), "prompt": prompt})
    prompter = Prompter(manifest, tmp_path / "t.json")
    assert prompter.encode("hi").input_ids[0].tolist() == [fx.BOS, *[259] * 4, *text_ids("hi")]
    with pytest.raises(InputError, match="reserves"):
        prompter.encode("what is <plain-image>?")


def test_contiguous_positions(prompter: Prompter) -> None:
    encoded = prompter.encode("hi")
    kept = np.array([1, 5, 6, 15])
    assert prompter.positions(encoded, kept).tolist() == [list(range(encoded.length))]


def test_original_positions(bundle: Bundle, prompter: Prompter) -> None:
    original = Prompter(
        type(bundle.manifest)(**{**vars(bundle.manifest), "positions": "original"}), bundle.file(TOKENIZER)
    )
    encoded = original.encode("hi")
    tail = encoded.length - 7 - 4
    expected = [*range(7), 7 + 1, 7 + 5, 7 + 6, 7 + 15, *range(7 + 16, 7 + 16 + tail)]
    assert original.positions(encoded, np.array([1, 5, 6, 15])).tolist() == [expected]
    assert original.positions(encoded, None).tolist() == [list(range(encoded.length))]
    # CLS in front and a sum behind have no place: they share the picture's first with the patch that stands there.
    expected[7:11] = [7, 7 + 0, 7 + 6, 7]
    assert original.positions(encoded, np.array([-1, 0, 6, -1])).tolist() == [expected]


def test_prompt_too_long(prompter: Prompter) -> None:
    fits = 128 - 1 - prompter.encode("").length
    prompter.positions(prompter.encode("x" * fits), None)
    with pytest.raises(InputError, match=r"too long: .* 128 positions, the model has 128"):
        prompter.positions(prompter.encode("x" * (fits + 1)), None)


def test_damaged_tokenizer(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(BundleError, match="export again"):
        Prompter(bundle.manifest, tmp_path / "t.json")


def test_template_without_slot(bundle: Bundle) -> None:
    prompt = Prompt(template="<image>", image_token="<image>", image_token_id=fx.IMAGE, eos_token_ids=())
    manifest = type(bundle.manifest)(**{**vars(bundle.manifest), "prompt": prompt})
    with pytest.raises(BundleError, match=r"must hold '\{prompt\}' once"):
        Prompter(manifest, bundle.file(TOKENIZER))


def stream(prompter: Prompter, ids: list[int]) -> list[str]:
    text = TextStream(prompter)
    return [*(text.push(token) for token in ids), text.finish()]


@settings(deadline=None)
@given(st.text(max_size=30).map(lambda text: list(text.encode())) | st.lists(st.integers(0, 256), max_size=30))
def test_streamed_pieces_are_the_whole_text(prompter: Prompter, ids: list[int]) -> None:
    assert "".join(stream(prompter, ids)) == prompter.decode(ids)


def test_characters_are_held_back_until_they_are_whole(prompter: Prompter) -> None:
    assert stream(prompter, list("a€b".encode())) == ["a", "", "", "€", "b", ""]


def llama_like() -> Tokenizer:
    vocab = {**{f"<0x{byte:02X}>": byte for byte in range(256)}, "▁the": 256, "▁cat": 257, "s": 258, "<unk>": 259}
    result = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    result.pre_tokenizer = pre_tokenizers.Metaspace()
    result.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return result


@settings(deadline=None)
@given(st.lists(st.integers(0, 258) | st.sampled_from([256, 257, 258]), max_size=30))
def test_streaming_with_a_llama_like_tokenizer(bundle: Bundle, ids: list[int]) -> None:
    prompter = Prompter(bundle.manifest, bundle.file(TOKENIZER))
    prompter._tokenizer = llama_like()
    ids = [token for token in ids if token != fx.EOS]  # 257 is the end there, a word here
    assert "".join(stream(prompter, ids)) == prompter.decode(ids)


def test_bundles_of_before_keep_working(bundle: Bundle, tmp_path: Path) -> None:
    """Their manifests don't say whether the tokenizer adds its special tokens: it did."""

    def older(raw: dict[str, Any]) -> None:
        for name in ("special_tokens", "strip", "origin"):
            del raw["prompt"][name]
        del raw["generation"]

    (tmp_path / "manifest.json").write_text(bundle.manifest.to_json(), encoding="utf-8")
    edit(tmp_path / "manifest.json", older)
    old = Prompter(Manifest.load(tmp_path / "manifest.json"), bundle.file(TOKENIZER))
    assert old.encode(" hi ").input_ids[0].tolist()[:2] == [fx.BOS, ord("U")]


def test_a_strip_that_isnt_known_is_refused(bundle: Bundle) -> None:
    prompt = dataclasses.replace(bundle.manifest.prompt, strip="middle")
    with pytest.raises(BundleError, match="strips 'middle', known: , both, left, right"):
        Prompter(dataclasses.replace(bundle.manifest, prompt=prompt), bundle.file(TOKENIZER))
