"""Absurd numbers, names and files of checkpoints are one short line without control characters, and exit code 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import runtime_fixtures as fx

import lmmprune
from lmmprune.compiler.cli import app
from lmmprune.compiler.cli.command import Argument, Option
from lmmprune.errors import BundleError, InputError, ModelError
from lmmprune.models.config_file import read_config, read_raw
from lmmprune.models.registry import tiny_llava_dir

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def asked(tmp_path: Path) -> list[Any]:
    bundle = fx.make_bundle(tmp_path / "out", keep=4)
    picture = fx.save_picture(tmp_path / "p.png", 3)
    return ["run", bundle.path, "--image", picture, "--prompt", "hi", "--max-new-tokens", "2"]


GIVEN = {
    ("--max-new-tokens", "9" * 5000): "expected a whole number in the digits 0 to 9",
    ("--max-new-tokens", "٣"): "expected a whole number in the digits 0 to 9",
    ("--max-new-tokens", "1_0"): "expected a whole number in the digits 0 to 9",
    ("--max-new-tokens", "-1"): "is not in the range x>=1",
    ("--threads", "1000000"): "is not in the range 1<=x<=1024",
    ("--temperature", "nan"): "expected a number in the digits 0 to 9",
    ("--top-p", "1e999"): "expected a number in the digits 0 to 9",
    ("--image", "x" * 300): "no system takes names of more than 255 bytes",
    ("--image", "x/" * 4000): "no system takes names of more than 255 bytes",
    ("--image", "a\0b"): "holds a NUL character",
    ("--image", "\ud800"): "holds half a character",
    ("--image", "\x1b[31mred"): r"there is no picture '\x1b[31mred'",
    ("--prompt", "a\0b"): "holds a NUL character",
    ("--prompt", "\ud800"): "holds half a character",
}


@pytest.mark.parametrize("given", GIVEN, ids=range(len(GIVEN)))
def test_an_absurd_option(given: tuple[str, str], asked: list[Any], cli: Call) -> None:
    option, value = given
    code, out, err = cli(*asked, option, value) if option not in asked else cli(*replaced(asked, option, value))
    assert (code, out) == (2, "")
    assert GIVEN[given] in err
    assert len(err) <= 401
    assert err[:-1].isprintable()


def test_every_word_of_every_command_is_looked_at() -> None:
    context = click.Context(app)
    commands = [app.get_command(context, name) for name in app.list_commands(context)]
    assert len(commands) > 15
    assert {type(one) for command in commands if command for one in command.params} == {Argument, Option}


@pytest.mark.parametrize("bundle", ["a\0b", "\ud800", "name=a\0b", "name=" + "x" * 300, "x" * 300], ids=range(5))
def test_an_absurd_bundle_to_serve(bundle: str, cli: Call) -> None:
    code, _, err = cli("serve", bundle)
    assert code == 2
    assert err.count("\n") == 1


def replaced(words: list[Any], option: str, value: str) -> list[Any]:
    place = words.index(option) + 1
    return [*words[:place], value, *words[place + 1 :]]


@pytest.mark.parametrize("bundle", ["x" * 300, "a\0b", "\ud800", ""], ids=range(4))
def test_an_absurd_bundle(bundle: str, cli: Call) -> None:
    code, _, err = cli("flops", bundle)
    assert code == 2
    assert err.count("\n") == 1


@pytest.mark.parametrize("words", [("eval", "--data"), ("compare", "--data"), ("flops", "--model"), ("show", "--site")])
@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000, "\x1b[31mred"], ids=range(3))
def test_a_name_that_may_be_something_else_than_a_path(
    words: tuple[str, str], name: str, asked: list[Any], cli: Call
) -> None:
    command, option = words
    bundle = {"compare": [asked[1], asked[1]], "flops": []}.get(command, [asked[1]])
    drawn = ["--image", asked[3], "-o", asked[1].parent / "d.png"] if command == "show" else []
    code, _, err = cli(command, *bundle, *drawn, option, name)
    assert code == 2
    assert len(err) <= 401
    assert err[:-1].isprintable()


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "\ud800"], ids=range(3))
def test_names_that_no_system_takes_in_python(name: str) -> None:
    with pytest.raises(BundleError, match="doesn't exist"):
        lmmprune.load(name)


def test_threads_have_a_limit_in_python_too(asked: list[Any]) -> None:
    with pytest.raises(InputError, match=r"threads is 1000000: expected a whole number in 1\.\.1024"):
        lmmprune.load(asked[1], threads=1_000_000)


LINES = {
    "[" * 100_000: "nested more than 64 deep",
    '{"image": "p.png", "prompt": "hi", "answer": ' + "9" * 5000 + "}": "a number of 5000 digits",
    json.dumps({"image": "x" * 300, "prompt": "hi", "answer": "x"}): "there is no picture",
    json.dumps({"image": "a\0b", "prompt": "hi", "answer": "x"}): "there is no picture",
    json.dumps({"image": "p.png", "prompt": "\ud800", "answer": "x"}): "half a character",
}


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_absurd_questions(line: str, asked: list[Any], cli: Call) -> None:
    file = asked[1].parent / "asked.jsonl"
    file.write_text(line)
    code, _, err = cli("eval", asked[1], "--data", file)
    assert code == 2
    assert LINES[line] in err
    assert len(err) <= 401


SIZES = {
    ("text_config", "num_hidden_layers", 10**9): "text_config.num_hidden_layers is 1000000000: expected a whole number",
    ("text_config", "num_attention_heads", 0): "text_config.num_attention_heads is 0: expected a whole number in 1..",
    ("text_config", "hidden_size", -64): "text_config.hidden_size is -64",
    ("text_config", "vocab_size", 10**30): "text_config.vocab_size is 10",
    ("text_config", "vocab_size", 2.5): "text_config.vocab_size is 2.5",
    ("vision_config", "patch_size", 0): "vision_config.patch_size is 0",
    ("vision_config", "image_size", (96, -96)): "vision_config.image_size is -96",
    ("vision_config", "num_channels", "3"): "",
    ("vision_config", "image_size", "wide"): "vision_config.image_size is 'wide'",
}


@pytest.mark.parametrize("size", SIZES)
def test_absurd_sizes_of_a_checkpoint(size: tuple[str, str, Any], tmp_path: Path) -> None:
    part, name, value = size
    shutil.copyfile(tiny_llava_dir() / "config.json", tmp_path / "config.json")
    raw = json.loads((tmp_path / "config.json").read_text())
    raw[part][name] = value
    (tmp_path / "config.json").write_text(json.dumps(raw))
    if not SIZES[size]:
        assert read_raw(tmp_path)[part][name] == value
        return
    with pytest.raises(ModelError, match="; is the file whole") as caught:
        read_raw(tmp_path)
    assert SIZES[size] in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("architectures", True),
        ("architectures", "LlavaLlamaForCausalLM"),
        ("architectures", [["x"]]),
        ("model_type", [1]),
    ],
)
def test_absurd_names_in_a_configuration(name: str, value: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"mm_vision_tower": "x", "hidden_size": [4096], name: value}))
    with pytest.raises(ModelError, match=rf"{name} is .*: expected a (list of )?names?; is the file whole"):
        read_config(tmp_path)


def test_an_original_llava_of_absurd_width(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"mm_vision_tower": "x", "hidden_size": [4096]}))
    with pytest.raises(ModelError, match="is of original LLaVA"):
        read_config(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' + "9" * 5000 + "}", '{"a": "\\ud800"}'], ids=range(3))
def test_an_absurd_configuration(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match="can't be read"):
        read_raw(tmp_path)
