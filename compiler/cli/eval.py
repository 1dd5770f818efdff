"""``lmmprune eval``: measure a bundle's accuracy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmmprune.compiler.cli.command import GENERAL, Command, option
from lmmprune.compiler.cli.given import refuse_ignored
from lmmprune.compiler.cli.options import force_option, threads_option
from lmmprune.compiler.cli.output import json_option, note, print_json, show
from lmmprune.compiler.cli.progress import progress
from lmmprune.compiler.cli.table import table
from lmmprune.errors import InputError

if TYPE_CHECKING:
    from lmmprune.compiler.measure.evaluate import Accuracy


@click.command("eval", cls=Command, example="lmmprune eval out/ --data questions.jsonl --predictions answers.jsonl")
@click.argument("bundle", type=click.Path(path_type=Path))
@option("--data", required=True, help="'tiny-llava', or a JSON Lines file with image, prompt, answer(s), kind.")
@option("--limit", type=click.IntRange(min=1), help="Ask only the first so many questions.")
@option("--max-new-tokens", default=16, show_default=True, type=click.IntRange(min=1), help="Cut answers there.")
@threads_option()
@option("--predictions", type=click.Path(path_type=Path, dir_okay=False), help="Write every answer, JSON Lines.")
@force_option("predictions that are there", group=GENERAL)
@json_option
def command(
    bundle: Path,
    data: str,
    limit: int | None,
    max_new_tokens: int,
    threads: int | None,
    predictions: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Ask questions with known answers; print the share of right ones, and of right first words, with 95 % intervals.

    An answer is right when all of it is an expected one, apart from case, white space around it and a final full stop.
    """
    from lmmprune.compiler.bundle.bundle import Bundle
    from lmmprune.compiler.bundle.replace import check_file
    from lmmprune.compiler.data.questions import load_questions
    from lmmprune.compiler.measure.evaluate import evaluate
    from lmmprune.compiler.runtime.runtime import Runtime

    refuse_ignored(predictions is not None, "is for predictions: add --predictions FILE", "force")
    opened = Bundle.open(bundle)
    if predictions and not predictions.parent.is_dir():
        raise InputError(f"can't write '{predictions}': there is no directory '{predictions.parent}'")
    if predictions:
        check_file(predictions, force=force, option="--predictions")
    questions = load_questions(data)[:limit]
    runtime = Runtime(opened, threads=threads)
    with progress() as bar:
        task = bar.add_task("answering", total=len(questions))
        result = evaluate(
            runtime, questions, max_new_tokens=max_new_tokens, on_answer=lambda: bar.update(task, advance=1)
        )
    if predictions:
        rows = result.as_dict(predictions=True)["predictions"]
        try:
            predictions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        except OSError as error:
            raise InputError(f"can't write '{predictions}' ({error.strerror})") from error
    manifest = opened.manifest
    if as_json:
        about = {"bundle": str(bundle), "data": data, "model": manifest.model, "method": manifest.method}
        tokens = {
            "tokens_before": manifest.tokens_before,
            "image_tokens": manifest.image_tokens,
            "average_tokens": manifest.average_tokens,
        }
        print_json({**about, **tokens, "int8": manifest.precision.int8, **result.as_dict()})
        return
    rows = [_cells(kind, whole, result.kinds_first_word[kind]) for kind, whole in result.kinds.items()]
    columns = ("questions", "asked", "correct", "95 % interval", "first word", "95 % interval")
    show(table(columns, [*rows, _cells("all", result.overall, result.first_word)]))
    note(f"{manifest.tokens_before} -> {manifest.average_tokens:.4g} image tokens; {result.seconds:.1f} s")


def _cells(name: str, whole: Accuracy, first: Accuracy) -> list[str]:
    cells = [name, str(whole.total)]
    for accuracy in (whole, first):
        low, high = accuracy.interval
        cells += [f"{accuracy.value:.1%}", f"{low:.1%} .. {high:.1%}"]
    return cells
