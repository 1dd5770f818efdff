"""Stop strings: the stream ends exactly before the first one, however text and tokens come in pieces."""

from __future__ import annotations

from pathlib import Path

import pytest
import runtime_fixtures as fx
from hypothesis import given, settings
from hypothesis import strategies as st
from test_prompt import llama_like

from lmmprune.compiler.bundle.bundle import TOKENIZER, Bundle
from lmmprune.compiler.runtime.prompt import Prompter
from lmmprune.compiler.runtime.stop_strings import StopStrings
from lmmprune.compiler.runtime.text_stream import TextStream
from lmmprune.errors import InputError


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return fx.make_bundle(tmp_path_factory.mktemp("stop") / "out")


@pytest.fixture(scope="module")
def bytewise(bundle: Bundle) -> Prompter:
    return Prompter(bundle.manifest, bundle.file(TOKENIZER))


@pytest.fixture(scope="module")
def fallback(bundle: Bundle) -> Prompter:
    prompter = Prompter(bundle.manifest, bundle.file(TOKENIZER))
    prompter._tokenizer = llama_like()
    return prompter


def stream(prompter: Prompter, ids: list[int], stop: list[str]) -> tuple[list[str], int, bool]:
    """Return the pieces, how many tokens were taken, and whether a stop string came."""
    text, pieces = TextStream(prompter, StopStrings(stop)), list[str]()
    for token in ids:
        if not text.stopped:
            pieces.append(text.push(token))
    return [*pieces, text.finish()], len(pieces), text.stopped


def letter_by_letter(text: str, stop: list[str]) -> int | None:
    """Return where the text is cut by somebody who reads it letter by letter."""
    for end in range(len(text) + 1):
        if begins := [end - len(one) for one in stop if text[:end].endswith(one)]:
            return min(begins)
    return None


def expected(prompter: Prompter, ids: list[int], stop: list[str]) -> tuple[str, int, bool]:
    """Decode again after every token: the first one with which a stop string is whole is the last one."""
    for count in range(1, len(ids) + 1):
        text = prompter.decode(ids[:count])
        text = text if count == len(ids) else text.rstrip("\ufffd")
        if (cut := letter_by_letter(text, stop)) is not None:
            return text[:cut], count, True
    return prompter.decode(ids), len(ids), False


letters = st.text("ab€\n", max_size=3).filter(bool)
stops = st.lists(letters, min_size=1, max_size=4)
anything = st.text("ab€\n", max_size=25).map(lambda text: list(text.encode()))
broken = st.lists(st.sampled_from([97, 98, 10, 0xE2, 0x82, 0xAC, 0xC3]), max_size=25)


@settings(deadline=None, max_examples=400)
@given(anything | broken, stops)
def test_the_text_ends_before_the_first_stop_string(bytewise: Prompter, ids: list[int], stop: list[str]) -> None:
    pieces, count, stopped = stream(bytewise, ids, stop)
    assert ("".join(pieces), count, stopped) == expected(bytewise, ids, stop)


words = st.lists(st.sampled_from([256, 257, 258, 10, 97, 0xE2, 0x82, 0xAC, 0xC3]), max_size=25)
spelled = st.lists(st.sampled_from([" cat", "the", "s", "sthe", "t c", "\n", "a\n", "€", "s€"]), min_size=1, max_size=3)


@settings(deadline=None, max_examples=400)
@given(words, spelled)
def test_with_words_and_byte_tokens(fallback: Prompter, ids: list[int], stop: list[str]) -> None:
    ids = [token for token in ids if token != fx.EOS]
    pieces, count, stopped = stream(fallback, ids, stop)
    assert ("".join(pieces), count, stopped) == expected(fallback, ids, stop)


@settings(deadline=None)
@given(st.text("ab", max_size=12), stops)
def test_where_it_is_cut_does_not_depend_on_the_pieces(text: str, stop: list[str]) -> None:
    assert StopStrings(stop).find(text) == letter_by_letter(text, stop)


def test_what_may_be_a_beginning_is_held_back(bytewise: Prompter) -> None:
    assert stream(bytewise, list(b"x\n\ny"), ["\n\n!"])[0] == ["x", "", "", "\n\ny", ""]
    assert stream(bytewise, list(b"x\n\n!y"), ["\n\n!"])[0] == ["x", "", "", "", ""]
    assert stream(bytewise, list(b"x\n"), ["\n\n!"])[0] == ["x", "", "\n"], "at the end it wasn't one"


def test_a_newline_of_a_byte_tokenizer_stops_at_once(fallback: Prompter) -> None:
    """It is a byte token there, whose text isn't settled before the next one."""
    assert stream(fallback, [256, 10, 258], ["\n"]) == (["the", "", ""], 2, True)


@pytest.mark.parametrize(
    ("stop", "message"),
    [("", "empty"), (["a", ""], "empty"), ([3], "a stop string is 3: expected text"), (["\ud800"], "half a character")],
)
def test_stop_strings_that_cant_be(stop: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        StopStrings(stop)  # type: ignore[arg-type]  # that is the mistake
    assert "\n" not in str(caught.value)


def test_one_text_is_one_stop_string_not_its_letters() -> None:
    assert StopStrings("ab").find("xbab") == 2


def test_the_run_time_stops(bundle: Bundle, tmp_path: Path) -> None:
    from lmmprune.compiler.runtime.runtime import Runtime

    runtime = Runtime(bundle)
    plain = runtime.answer(fx.picture(1), "hi?", 24).text
    stop = plain[9:11]
    answer = runtime.answer(fx.picture(1), "hi?", 24, stop=stop)
    assert answer.text == plain[: plain.index(stop)]
    assert answer.finish_reason == "stop_string"
    assert answer.stats.new_tokens == len(answer.tokens) < 24
    assert runtime.answer(fx.picture(1), "hi?", 24, stop=["never said"]).finish_reason == "length"
