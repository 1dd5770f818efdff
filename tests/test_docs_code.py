"""Every block of Python, and every call of ``lmmprune``, in the README and the documentation does what it says.

The blocks of a page are run in order, in a folder of their own with ``models/``, ``photo.jpg`` and ``cat.jpg``. What
says why it isn't run is counted in the test's name.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from docs_blocks import Block, blocks_of
from PIL import Image

from lmmprune.models.registry import tiny_llava_dir

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = {page: [block for block in blocks_of(page) if block.calls] for page in PAGES}
Cli = Callable[..., tuple[int, str, str]]

# Exports that another page has made already, by their options: command -> bundle.
_MADE: dict[tuple[str, ...], Path] = {}
_FILES = {"--method-file", "--calib", "--template", "--adapter", "--triton"}


def counted(page: Path) -> str:
    """Name a page and how many of its blocks are run, and how many aren't."""
    without = sum(block.reason is not None for block in BLOCKS[page])
    return f"{page.relative_to(ROOT)}: {len(BLOCKS[page]) - without} run, {without} not"


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCKS[page]], ids=counted)
def test_the_blocks_of_a_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").symlink_to(tiny_llava_dir().parent.resolve())
    for name in ("photo.jpg", "cat.jpg"):
        Image.open(tiny_llava_dir() / "examples" / "scene_003.png").convert("RGB").save(name)
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in BLOCKS[page]:
        if block.reason is not None:
            continue
        if block.before is not None:
            call(cli, block, block.before.split())
        if block.language == "python":
            exec(compile(block.text, block.where, "exec"), names)
            continue
        for words, said in itertools.zip_longest(block.commands, block.printed):
            out = call(cli, block, words)
            # Of what answers, the answer; tables hold times and sizes of the machine that made them.
            if words[1] == "run" and said is not None:
                assert out.strip() == said, f"{block.where}: {' '.join(words)} prints another answer"


def call(cli: Cli, block: Block, words: list[str]) -> str:
    """Run one command and return its stdout; an export that was made with these options before is copied."""
    assert words[0] == "lmmprune", f"{block.where}: '{words[0]}' isn't lmmprune: put it into a block of its own"
    known, out = export_of(words)
    if known in _MADE and out is not None and not out.exists():
        shutil.copytree(_MADE[known], out)
        return ""
    code, printed, err = cli(*words[1:])
    assert code == 0, f"{block.where}: {' '.join(words)}\n{err}"
    if known is not None and out is not None:
        _MADE[known] = out.resolve()
    return printed


def export_of(words: list[str]) -> tuple[tuple[str, ...] | None, Path | None]:
    """Return the options and the folder of an export that depends on nothing in this folder; None: it isn't one."""
    with contextlib.suppress(ValueError, IndexError):
        place = words.index("-o")
        if words[1] == "export" and not _FILES & {*words}:
            return (*words[:place], *words[place + 2 :]), Path(words[place + 1])
    return None, None


def test_what_is_not_run_says_why() -> None:
    blocks = [block for page in PAGES for block in blocks_of(page)]
    assert [block.where for block in blocks if block.reason is not None and len(block.reason) < 6] == []
    unnamed = [block.where for block in blocks if block.calls and block.language not in ("python", "sh", "console")]
    assert unnamed == [], "the block's language decides what is run: write python, sh or console behind the fence"
    run = [block for block in blocks if block.calls and block.reason is None]
    assert len(run) >= 10, "most of what can be shown with tiny-llava is run"
    assert any(block.language == "python" and block.page.name == "README.md" for block in run)


def page_of(text: str, folder: Path) -> list[Block]:
    (folder / "page.md").write_text(text, encoding="utf-8")
    return blocks_of(folder / "page.md")


def test_notes_and_commands_are_read(tmp_path: Path) -> None:
    python, console, shell, printed = page_of(
        "words\n<!-- not run: needs a GPU -->\n\n```python\n1 / 0\n```\n"
        "<!-- before: lmmprune export -o out -->\n```console\n$ lmmprune run 'a b' \\\n    --x 1  # why\nprinted\n```\n"
        "<!-- not run: stands before other words -->\nwords\n"
        "  ```sh\n  lmmprune a\n\n  # only this\n  lmmprune b\n  ```\n"
        "```\nprinted\n```\n",
        tmp_path,
    )
    assert (python.reason, python.line, python.calls) == ("needs a GPU", 4, True)
    assert (console.before, console.reason) == ("lmmprune export -o out", None)
    assert console.commands == [["lmmprune", "run", "a b", "--x", "1"]]
    assert (shell.reason, shell.commands) == (None, [["lmmprune", "a"], ["lmmprune", "b"]])
    assert not printed.calls


@pytest.mark.parametrize("command", ["lmmprune a | tee b", "lmmprune a && lmmprune b", "lmmprune a > b"])
def test_what_only_a_shell_understands_is_refused(command: str, tmp_path: Path) -> None:
    (block,) = page_of(f"```sh\n{command}\n```\n", tmp_path)
    with pytest.raises(AssertionError, match="isn't a single command"):
        _ = block.commands


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```sh\nlmmprune run nothing --image photo.jpg --prompt hi\n```", "doesn't exist"),
        ("```sh\nlmmprune targets\npip list\n```", "'pip' isn't lmmprune"),
    ],
)
def test_a_block_that_fails_is_found(text: str, message: str, tmp_path: Path, cli: Cli) -> None:
    (block,) = page_of(text, tmp_path)
    *before, last = block.commands
    for words in before:
        call(cli, block, words)
    with pytest.raises(AssertionError, match=re.escape(message)):
        call(cli, block, last)
