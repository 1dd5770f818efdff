"""``lmmprune card``: a bundle's model card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from lmmprune.compiler.cli.command import Command, argument, option
from lmmprune.compiler.cli.given import refuse_ignored
from lmmprune.compiler.cli.options import force_option, output_option, unsealed_option
from lmmprune.compiler.cli.output import json_option, note, print_json

F = TypeVar("F", bound=Callable[..., object])

_MEASURED = "What was measured"


def _results(name: str, parameter: str, what: str) -> Callable[[F], F]:
    return option(
        name,
        parameter,
        multiple=True,
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE.json",
        help=f"What 'lmmprune {what} --json' printed; may be repeated.",
        group=_MEASURED,
    )


@click.command("card", cls=Command, example="lmmprune card out/ --eval pope.json --compare faithful.json -o CARD.md")
@argument("bundle", type=click.Path(path_type=Path))
@_results("--eval", "evaluations", "eval")
@_results("--compare", "comparisons", "compare")
@_results("--bench", "benches", "bench")
@output_option("Write the card to this file.  [default: print it]", required=False, dir_okay=False)
@force_option("a card that is there")
@unsealed_option
@json_option
def command(
    bundle: Path,
    evaluations: tuple[Path, ...],
    comparisons: tuple[Path, ...],
    benches: tuple[Path, ...],
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write a bundle's model card in Markdown: what it is, what was measured and how, and what wasn't.

    Results belong to a bundle by the checksum of its files, wherever it lies.
    """
    import dataclasses

    from lmmprune.api.look import card

    refuse_ignored(output is not None, "is for a file: add -o FILE", "force")
    found = card(bundle, output, evaluations=evaluations, comparisons=comparisons, benches=benches, force=force)
    if output is not None:
        note(f"card written to {output}")
    if as_json:
        print_json(dataclasses.asdict(found))
    elif output is None:
        click.echo(found.markdown, nl=False)
