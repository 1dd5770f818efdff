"""The errors of lmmprune: one tree, one line each, saying what was found, what was expected and what to do."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class LmmpruneError(Exception):
    """A mistake or a limit that the user can act on: the command line prints it in one line and exits with 2."""


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
