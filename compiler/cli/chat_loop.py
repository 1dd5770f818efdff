"""The lines of a chat: questions, and what begins with a slash."""

from __future__ import annotations

import contextlib
import importlib
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmmprune.compiler.cli.answering import stats_line
from lmmprune.compiler.cli.output import note
from lmmprune.errors import InputError, LmmpruneError, one_line, suggestion

if TYPE_CHECKING:
    from PIL import Image

    from lmmprune.api.conversation import Conversation
    from lmmprune.api.model import Model

COMMANDS = {
    "/image FILE...": "bring further pictures, for the next question",
    "/new FILE...": "begin anew, about these pictures",
    "/reset": "forget what was said; the pictures stay",
    "/stats": "print times and token counts behind each answer, or no longer",
    "/help": "print this",
    "/exit": "end, as Ctrl-D does; Ctrl-C ends an answer",
}


class ChatLoop:
    """Reads lines and answers them until there are no more."""

    def __init__(
        self,
        model: Model,
        settings: Mapping[str, Any],
        *,
        reuse: bool,
        terminal: bool,
        stats: bool = False,
        as_json: bool = False,
    ) -> None:
        """Take a loaded bundle.

        Args:
            model: The bundle.
            settings: Of each answer, as ``Conversation.answer`` takes them.
            reuse: Whether what the decoder has read isn't read again.
            terminal: Whether somebody types: mistakes are said then, and don't end it.
            stats: Whether to print statistics behind an answer.
            as_json: Whether answers are lines of JSON.
        """
        self._model, self._settings, self._reuse = model, settings, reuse
        self._terminal, self._stats, self._as_json = terminal, stats, as_json
        self._talk: Conversation = model.conversation(reuse=reuse)
        self._further: list[Image.Image] = []

    def begin(self, files: Sequence[str | Path]) -> None:
        """Begin a conversation about some pictures, or none yet.

        Raises:
            InputError: One can't be used, or there are too many.
        """
        pictures = self._open(files, 0)
        self._talk, self._further = self._model.conversation(reuse=self._reuse), pictures

    def run(self) -> None:
        """Answer line by line.

        Raises:
            LmmpruneError: Nobody types, and a line can't be answered.
        """
        if self._terminal:
            note(f"{self._model.manifest.model}: ask about {_pictures(len(self._further))}; /help says what else")
        for line in _typed() if self._terminal else _piped():
            try:
                if line.strip() == "/exit":
                    return
                self._line(line)
            except LmmpruneError as error:
                if not self._terminal:
                    raise
                click.echo(f"error: {one_line(str(error))}", err=True)

    def _line(self, line: str) -> None:
        """Do what a line says."""
        if not line.startswith("/"):
            if line.strip():
                self._ask(line)
            return
        try:
            name, *words = shlex.split(line)
        except ValueError as error:
            raise InputError(f"'{line}': {error}, expected a command and names of files") from error
        known = {usage.split()[0]: "FILE" in usage for usage in COMMANDS}
        if name not in known:
            raise InputError(f"no command '{name}'{suggestion(name, known)} (a question that begins so: a space first)")
        if bool(words) != known[name]:
            raise InputError(f"{name} takes {'names of files' if known[name] else 'nothing'}, found '{line}'")
        if name == "/new":
            self.begin(words)
        elif name == "/image":
            self._further += self._open(words, self._talk.pictures + len(self._further))
        elif name == "/reset":
            self._talk.reset()
        elif name == "/stats":
            self._stats = not self._stats
        else:
            for usage, about in COMMANDS.items():
                click.echo(f"  {usage:15} {about}")

    def _open(self, files: Sequence[str | Path], before: int) -> list[Image.Image]:
        """Open pictures beside those that are there."""
        from lmmprune.compiler.runtime.open_picture import open_picture
        from lmmprune.compiler.runtime.prompt import check_pictures

        if before + len(files) > self._model.manifest.images and before:
            raise InputError(
                f"no room for {_pictures(len(files))} beside {before}: this bundle takes"
                f" {_pictures(self._model.manifest.images)} per prompt; /new FILE begins anew with another, 'export"
                f" --images {before + len(files)}' makes a bundle that takes more"
            )
        if files and not self._model.manifest.joint:
            check_pictures(self._model.manifest, before + len(files))
        return [open_picture(file) for file in files]

    def _ask(self, question: str) -> None:
        """Answer a question; Ctrl-C at a terminal ends the answer alone."""
        answer = self._talk.answer(question, self._further, **self._settings)
        self._further = []
        try:
            for piece in answer:
                if not self._as_json:
                    click.echo(piece, nl=False)
        except KeyboardInterrupt:
            if not self._terminal:
                raise
        if self._as_json:
            kept = None if answer.kept is None else answer.kept.tolist()
            said = {"question": question, "answer": answer.text, "tokens": answer.tokens, "kept_indices": kept}
            click.echo(json.dumps({**said, "stats": answer.stats.as_dict()}, allow_nan=False))
        else:
            click.echo()
        sys.stdout.flush()
        if self._stats:
            click.echo(stats_line(answer.stats), err=True)


def _pictures(count: int) -> str:
    return {0: "a picture that /image FILE brings", 1: "1 picture"}.get(count, f"{count} pictures")


def _typed() -> Iterator[str]:
    """Yield what is typed, with the line editing that Python has here."""
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")
    while True:
        try:
            yield input("> ")
        except EOFError:
            click.echo()
            return
        except UnicodeDecodeError as error:
            click.echo(f"error: that isn't {error.encoding}: type it anew", err=True)


def _piped() -> Iterator[str]:
    """Yield the lines of a pipe or a file; what isn't UTF-8 is refused where it is asked."""
    for line in sys.stdin.buffer:
        yield line.decode("utf-8", "surrogateescape").rstrip("\r\n")
