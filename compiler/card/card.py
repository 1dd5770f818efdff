"""Write the card of a bundle: what it is, what was measured and how, and what wasn't."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmmprune.compiler.bundle.atomic import replace_file
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.bundle.replace import check_file
from lmmprune.compiler.card import facts, measured
from lmmprune.compiler.card.markdown import bullets, code
from lmmprune.compiler.card.results import Given, Section
from lmmprune.compiler.measure.formats.table import FORMATS
from lmmprune.errors import InputError

# What pruning loses first, and the set that shows it.
_LOST_FIRST = {"pope": "things that aren't there", "textvqa": "small writing", "refcoco": "where something is"}
_WANTED = {
    "answers": "How often its answers are right: `lmmprune eval`",
    "faithfulness": "How faithful it is to the unpruned model: `lmmprune compare`",
    "time": "How fast it is: `lmmprune bench`",
    "memory": "How much memory it takes: `lmmprune bench`",
}
_NEVER = "Other pictures, questions and languages than those above; bias and safety: see the model's own card"


@dataclass(frozen=True, kw_only=True)
class Card:
    """A bundle's card.

    Attributes:
        markdown: Its text.
        measured: What was measured: ``answers``, ``faithfulness``, ``time``, ``memory``, and ``format NAME`` for sets.
        missing: What wasn't, a line each, as the card says it.
    """

    markdown: str
    measured: tuple[str, ...]
    missing: tuple[str, ...]

    def save(self, path: Path, *, force: bool = False) -> None:
        """Write the text, whole or not at all.

        Raises:
            InputError: The file is there and ``force`` isn't given, or it can't be written.
        """
        check_card(path, force=force)
        try:
            with replace_file(path) as stream:
                stream.write(self.markdown.encode())
        except OSError as error:
            raise InputError(f"can't write the card '{path}' ({error.strerror or error})") from error


def check_card(path: Path, *, force: bool) -> None:
    """Refuse a file that a card can't be written to.

    Raises:
        InputError: Its folder doesn't exist, or it is there and ``force`` isn't given.
    """
    if not path.parent.is_dir():
        raise InputError(f"can't write the card '{path}': there is no directory '{path.parent}'")
    check_file(path, force=force)


def make_card(
    bundle: Bundle, evaluations: Sequence[Given] = (), comparisons: Sequence[Given] = (), benches: Sequence[Given] = ()
) -> Card:
    """Make the card of a bundle.

    Args:
        bundle: The bundle.
        evaluations: What ``eval --json`` printed.
        comparisons: What ``compare --json`` printed.
        benches: What ``bench --json`` printed.

    Raises:
        InputError: One of them is no such result, or says nothing of this bundle.
    """
    sections = [
        *measured.at_export(bundle),
        *(measured.answers(given, bundle) for given in evaluations),
        *(measured.faithfulness(given, bundle) for given in comparisons),
        *(measured.speed(given, bundle) for given in benches),
    ]
    covered = frozenset[str]().union(*(section.covers for section in sections))
    missing = _missing(bundle, covered)
    lines = [
        f"# {facts.title(bundle)}",
        "",
        *facts.what_it_is(bundle),
        *facts.tokens(bundle),
        *facts.numbers(bundle),
        *facts.how_to_run(bundle),
        "## What was measured",
        "",
        *_measured(sections),
        "## What wasn't measured",
        "",
        *bullets(missing),
    ]
    return Card(markdown="\n".join(lines).rstrip() + "\n", measured=tuple(sorted(covered)), missing=missing)


def _measured(sections: Sequence[Section]) -> list[str]:
    return [line for section in sections for line in section.lines] if sections else ["Nothing.", ""]


def _missing(bundle: Bundle, covered: frozenset[str]) -> tuple[str, ...]:
    """Return what nobody measured, a line each."""
    changed = bundle.manifest.method is not None or bundle.manifest.precision.quantized
    found = [words for name, words in _WANTED.items() if name not in covered and (changed or name != "faithfulness")]
    lost = [
        f"{words} ({FORMATS[name].title}, {code(f'--format {name}')})"
        for name, words in _LOST_FIRST.items()
        if f"format {name}" not in covered
    ]
    if lost and bundle.manifest.method is not None:
        found.append(f"What pruning loses first: {'; '.join(lost)}")
    return (*found, _NEVER)
