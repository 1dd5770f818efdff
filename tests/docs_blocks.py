"""Code blocks of a page: which there are, which are run, and the commands in them.

Run are blocks of ``python``, and of ``sh`` or ``console`` that call ``lmmprune``. Directly before a block may stand

* ``<!-- not run: REASON -->``, for what needs a GPU, the hub, gigabytes or minutes;
* ``<!-- before: lmmprune ... -->``, a command that a reader of this page has run already.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^( *)```(.*)$")
_NOTE = re.compile(r"^ *<!-- *(not run|before): *(.*?) *-->$")
_SHELL = ("sh", "console")
# A shell would do something with these: they would reach the command as words here.
_OPERATORS = {"|", "||", "&&", ";", "&", ">", ">>", "<"}


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block: where it begins, its language, its text, why it isn't run, and what was run before it."""

    page: Path
    line: int
    language: str
    text: str
    reason: str | None = None
    before: str | None = None

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """The commands of a shell block as words; without what a console printed."""
        return list(_commands(self.text, console=self.language == "console"))

    @property
    def printed(self) -> list[str | None]:
        """What a console block says that each command prints; None where it says nothing, or leaves some out."""
        said: list[str | None] = []
        for part in f"\n{self.text}".split("\n$ ")[1:] if self.language == "console" else []:
            lines = part.splitlines()
            behind = next(number for number, line in enumerate(lines) if not line.endswith("\\")) + 1
            shown = lines[behind:]
            said.append("\n".join(shown) if shown and "..." not in {line.strip() for line in shown} else None)
        return said

    @property
    def calls(self) -> bool:
        """Whether it is code of ours: Python, or a shell that calls ``lmmprune``, alone or among others."""
        lines = self.text.splitlines()
        ours = any(line.removeprefix("$ ").startswith("lmmprune ") for line in lines)
        return self.language == "python" or ours


def blocks_of(page: Path) -> list[Block]:
    """Return the code blocks of a page in their order."""
    found: list[Block] = []
    notes: dict[str, str] = {}
    opened: tuple[int, str, str] | None = None
    lines: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if opened is None:
            if note := _NOTE.match(line):
                notes[note[1]] = note[2]
            elif fence:
                opened, lines = (number, fence[1], fence[2].strip()), []
            elif line.strip():
                notes = {}
        elif fence and not fence[2].strip():
            start, indent, language = opened
            text = "\n".join(part.removeprefix(indent) for part in lines)
            reason, before = notes.get("not run"), notes.get("before")
            found.append(Block(page=page, line=start, language=language, text=text, reason=reason, before=before))
            opened, notes = None, {}
        else:
            lines.append(line)
    assert opened is None, f"{page}:{opened}: a block that doesn't end"
    return found


def _commands(text: str, *, console: bool) -> Iterator[list[str]]:
    going_on = False
    command = ""
    for line in text.splitlines():
        if not going_on:
            if console and not line.startswith("$ "):
                continue
            command, line = "", line.removeprefix("$ ") if console else line
        command, going_on = command + line.removesuffix("\\"), line.endswith("\\")
        if not going_on and (words := shlex.split(command, comments=True)):
            assert not _OPERATORS & {*words}, f"'{command}' isn't a single command: write one a line, or say 'not run'"
            yield words
