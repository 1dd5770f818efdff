"""The errors of lmmprune: one tree, one line each, saying what was found, what was expected and what to do."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any


class LmmpruneError(Exception):
    """A mistake or a limit that the user can act on: the command line prints it in one line and exits with 2.

    Attributes:
        made: What was done before it, which ``--json`` prints beside it.
    """

    made: Mapping[str, Any] = MappingProxyType({})


class LmmpruneWarning(UserWarning):
    """What the user should know of a result that is given all the same: the command line prints it in one line."""


class InputError(LmmpruneError):
    """An argument, a picture, a prompt or a data file that can't be used."""


class ModelError(LmmpruneError):
    """A model or a checkpoint that can't be resolved or read."""


class GraphRefusal(LmmpruneError):
    """A graph that a pass can't rewrite: names the anchor looked for, what was found, and what to do."""


class BundleError(LmmpruneError):
    """A bundle directory that is missing, incomplete, corrupt or of another format."""


class TargetError(LmmpruneError):
    """A target or architecture that is unknown, or that this machine can't serve."""


class MissingExtraError(LmmpruneError):
    """A package that belongs to an optional extra and isn't installed."""


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ``'; did you mean 'x'?'`` for the nearest known name, or a list of what is known.

    Args:
        name: What the user wrote.
        known: The names that would have been accepted.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known: {', '.join(names)}"


_CAUSE = 300
"""Letters of a library's own message that are shown."""


@contextlib.contextmanager
def below(part: str, advice: str, *, kind: type[LmmpruneError] = ModelError) -> Iterator[None]:
    """Turn what a library raises below a step into one line: the part, the cause, what to try.

    What our own code raises is our own mistake and stays what it is.

    Args:
        part: What was done, such as ``tracing the decoder``.
        advice: What the user can try.
        kind: The error to raise.

    Raises:
        LmmpruneError: ``kind``, from the library's exception.
    """
    try:
        yield
    except LmmpruneError:
        raise
    except Exception as error:  # every library has its own; what is ours goes on as it was
        root = _root(error)
        if _is_ours(root):
            raise
        raise kind(f"{part} failed ({said(root)}): {advice}; -v shows the traceback") from error


@contextlib.contextmanager
def naming(where: str) -> Iterator[None]:
    """Begin the message of an ``InputError`` with the place that it is about, such as ``line 3 of 'a.jsonl'``.

    Args:
        where: The place; empty where nobody can look it up.

    Raises:
        InputError: As it came, with its place.
    """
    try:
        yield
    except InputError as error:
        if not where:
            raise
        raise InputError(f"{where}: {error}") from error


def one_line(message: str, most: int = 400) -> str:
    """Return a message as one line that is safe to print, without its middle if it is long.

    Args:
        message: Words that may hold what somebody else wrote: names, values, a library's reason.
        most: Letters at most.
    """
    words = " ".join(message.split())
    plain = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in words
    )
    if len(plain) <= most:
        return plain
    # What to do stands at the end.
    end = most // 3
    return f"{plain[: most - end - 3]} … {plain[-end:]}"


def said(error: BaseException) -> str:
    """Return an exception's own words in one line, the first of them where there are many."""
    words = " ".join(str(error).split())
    short = words if len(words) <= _CAUSE else words[: _CAUSE - 1].rsplit(" ", 1)[0] + " …"
    return f"{type(error).__name__}: {short}" if short else type(error).__name__


def _root(error: BaseException) -> BaseException:
    """Return what an exception was raised from in the end: exporters wrap the cause in steps and advice."""
    while (cause := error.__cause__ or (None if error.__suppress_context__ else error.__context__)) is not None:
        error = cause
    return error


def _is_ours(error: BaseException) -> bool:
    """Return whether the innermost line that ran is in this package."""
    frames = traceback.extract_tb(error.__traceback__)
    home = Path(__file__).resolve().parent
    rooms = [home, *(path.resolve() for path in home.iterdir() if path.is_dir())]
    return bool(frames) and any(Path(frames[-1].filename).resolve().is_relative_to(room) for room in rooms)


def require(module: str, extra: str) -> ModuleType:
    """Import a module of an optional extra.

    Args:
        module: Name to import.
        extra: The extra of lmmprune that installs it.

    Raises:
        MissingExtraError: The module isn't installed; the message names the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingExtraError(
            f"this needs the package '{module}', which isn't installed: pip install 'lmmprune[{extra}]'"
        ) from error
