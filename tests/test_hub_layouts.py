"""Checkpoints as they lie on the hub: what a family serves, answers as transformers', refusals in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_layouts import LAYOUTS, oracle
from hub_layouts.matrix import Tried
from hub_layouts.one_trace import one_trace

Cli = Callable[..., tuple[int, str, str]]
MAIN = "llava-1.5-7b-hf"
SERVED = [layout.name for layout in LAYOUTS.values() if layout.served]
REFUSED = [layout.name for layout in LAYOUTS.values() if not layout.served]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def main(work: Path) -> Tried:
    return Tried(LAYOUTS[MAIN], work)


@pytest.mark.parametrize("name", SERVED)
def test_a_layout_is_served(name: str, work: Path, main: Tried) -> None:
    tried = main if name == MAIN else Tried(LAYOUTS[name], work)
    for command in tried.layout.commands:
        cell = tried.try_command(command)
        expected = tried.layout.refused.get(command)
        assert cell.outcome == ("refused" if expected else "served"), f"{command}: {cell.line}"
        assert expected is None or re.search(expected, cell.line), f"{command}: {cell.line}"


def test_the_answer_is_one_about_the_picture(main: Tried) -> None:
    """Equal answers say something only where the picture decides them."""
    other = oracle.expected(main.model, main.layout, seed=4)
    assert other.tokens != main.wanted.tokens
    assert other.prompt == main.wanted.prompt


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_served_is_named_in_one_line(name: str, work: Path, cli: Cli) -> None:
    layout = LAYOUTS[name]
    code, out, err = cli("export", "--model", Tried(layout, work).model, "-o", work / "never")
    assert (code, out) == (2, ""), err
    assert err.startswith("lmmprune: error: ")
    assert err.count("\n") == 1
    for part in layout.line:
        assert re.search(part, err), f"{part!r} isn't in {err!r}"
    assert not (work / "never").exists()


def test_the_main_job_on_the_first_checkpoint(main: Tried, work: Path, cli: Cli) -> None:
    with one_trace():
        code, _, err = cli("export", "--model", main.model, "--ratio", 0.5, "--int8", "-o", work / "out")
    assert code == 0, err
    assert "Traceback" not in err
    oracle.picture(main.layout).save(work / "picture.png")
    words = ["--image", work / "picture.png", "--prompt", oracle.QUESTION, "--max-new-tokens", 4]
    code, out, err = cli("run", work / "out", *words, "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert len(answer["tokens"]) == 4
    assert answer["stats"]["prompt_tokens"] == len(main.wanted.prompt) - 16 + len(answer["kept_indices"])
