"""Names that the shell completes: of methods, models, targets, boards, formats. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from lmmprune.errors import LmmpruneError

if TYPE_CHECKING:
    _Text = click.ParamType[str]
else:
    _Text = click.ParamType  # which older releases can't subscript


class Name(_Text):
    """A text that may be one of some names; whether it is, the command itself says, with what to do.

    Attributes:
        name: What stands for it in ``--help``.
    """

    def __init__(self, name: str, known: Callable[[], Iterable[str]], *, paths: bool = False, many: bool = False):
        """Name what is completed.

        Args:
            name: What stands for it in ``--help``.
            known: Returns the names; called when the shell asks.
            paths: Whether it may be a directory, too.
            many: Whether it is a list, separated by commas.
        """
        self.name = name
        self._known = known
        self._paths = paths
        self._many = many

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text as it is."""
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the names that begin so; a directory is for the shell to complete."""
        if self._paths and incomplete[:1] in ("/", ".", "~"):
            return [CompletionItem(incomplete, type="dir")]
        before, comma, last = incomplete.rpartition(",") if self._many else ("", "", incomplete)
        try:
            names = sorted(self._known())
        except (ImportError, LmmpruneError):  # an extra is missing: the command says which, a completion can't
            names = []
        return [CompletionItem(f"{before}{comma}{name}") for name in names if name.startswith(last)]


def _methods() -> Iterable[str]:
    from lmmprune.passes.methods import find_methods

    return find_methods()


def _models() -> Iterable[str]:
    from lmmprune.models.aliases import ALIASES

    return ALIASES


def _aliases_and_families() -> Iterable[str]:
    from lmmprune.models.registry import FAMILIES

    return [*_models(), *FAMILIES]


def _targets() -> Iterable[str]:
    from lmmprune.compiler.targets.targets import TARGETS

    return [name for target in TARGETS.values() for name in target.names]


def _boards() -> Iterable[str]:
    from lmmprune.compiler.targets.boards import JETPACKS

    return JETPACKS


def _architectures() -> Iterable[str]:
    from lmmprune.compiler.build.architectures import NVIDIA

    return NVIDIA


def _formats() -> Iterable[str]:
    from lmmprune.compiler.measure.formats.table import FORMATS

    return FORMATS


METHOD = Name("method", _methods)
METHODS = Name("methods", _methods, many=True)
MODEL = Name("model", _models, paths=True)
MODEL_OR_FAMILY = Name("name", _aliases_and_families)
TARGET = Name("target", _targets)
BOARD = Name("board", _boards)
ARCHITECTURE = Name("arch", _architectures)
FORMAT = Name("format", _formats)
