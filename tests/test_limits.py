"""Whole numbers in a range, JSON within limits, lines that are safe to print: for whatever is given."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmmprune.errors import one_line
from lmmprune.limits import bounded, is_file, parse_json, read_json

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**39), 10**39)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
NONE = [True, 2.0, None, "٣", "1_0", " 1", "1.0", "", "0x1", "9" * 5000, [1], 10**5000]
few = settings(max_examples=50, derandomize=True, deadline=None)


@few
@given(PLAIN)
def test_what_json_says_is_returned(value: object) -> None:
    assert parse_json(json.dumps(value), finite=True) == value


@few
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_whatever_is_no_json_is_a_value_error(data: bytes) -> None:
    try:
        expected = json.loads(data.decode())
    except ValueError:
        with pytest.raises(ValueError):
            parse_json(data)
    else:
        assert repr(parse_json(data)) == repr(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested more than 64 deep"),
        ('{"a":' * 100_000, "nested more than 64 deep"),
        ("[" * 66 + "]" * 66, "nested more than 64 deep"),
        ("9" * 41, "a number of 41 digits, expected 40 at most"),
        ("9" * 10_000, "a number of 10000 digits"),
        (r'{"a": "\ud800"}', "half a character"),
        (r'{"\udfff": 1}', "half a character"),
    ],
    ids=range(7),
)
def test_what_is_beyond_the_limits(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text)


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "[1e999]"])
def test_numbers_that_json_lacks_are_refused_where_they_are_ours(text: str) -> None:
    parse_json(text)
    with pytest.raises(ValueError, match="it holds"):
        parse_json(text, finite=True)


def test_what_is_within_the_limits() -> None:
    assert parse_json("[" * 64 + "]" * 64) is not None
    assert parse_json("9" * 40) == int("9" * 40)
    assert parse_json(r'"\ud83d\ude00"') == "\U0001f600"


def test_only_regular_files_of_some_size_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("[1, 2]")
    assert read_json(file) == [1, 2]
    with pytest.raises(ValueError, match="it has 6 bytes, expected 5 at most"):
        read_json(file, most=5)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="no regular file"):
        read_json(tmp_path / "pipe")


@few
@given(st.integers(), st.integers(-100, 100), st.integers(0, 100))
def test_a_number_is_taken_if_it_lies_in_the_range(number: int, low: int, more: int) -> None:
    for value in (number, str(number)):
        if low <= number <= low + more:
            assert bounded(value, "n", low, low + more) == number
        else:
            with pytest.raises(ValueError, match=f"n is .*: expected a whole number in {low}..{low + more}"):
                bounded(value, "n", low, low + more)


@pytest.mark.parametrize("value", NONE, ids=range(len(NONE)))
def test_what_is_no_whole_number(value: object) -> None:
    with pytest.raises(ValueError, match=r"^n is .{1,90}: expected a whole number in 0\.\.9$"):
        bounded(value, "n", 0, 9)


@few
@given(st.text(max_size=800) | st.text(alphabet="\x00\x1b\ud800\u202ea b", max_size=800), st.integers(40, 400))
def test_a_line_is_one_short_and_printable(text: str, most: int) -> None:
    line = one_line(text, most)
    assert len(line) <= most
    assert line.isprintable()


def test_a_long_line_keeps_its_end() -> None:
    line = one_line("x" * 5000 + ": export again")
    assert line.startswith("xxx")
    assert line.endswith("x: export again")
    assert one_line("a\x1b[31m\nb") == "a\\x1b[31m b"


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "\ud800", "x/" * 5000], ids=range(4))
def test_names_that_no_system_takes_are_no_files(name: str) -> None:
    assert not is_file(Path(name))
