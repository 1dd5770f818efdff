"""``lmmprune eval``: measure a bundle's accuracy."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmmprune.compiler.cli.command import GENERAL, Command, argument, option
from lmmprune.compiler.cli.given import refuse_ignored
from lmmprune.compiler.cli.options import force_option, threads_option, unsealed_option
from lmmprune.compiler.cli.output import json_option, note, print_json, show, warn
from lmmprune.compiler.cli.progress import progress
from lmmprune.compiler.cli.table import table
from lmmprune.errors import InputError

if TYPE_CHECKING:
    from lmmprune.compiler.bundle.manifest import Manifest
    from lmmprune.compiler.measure.evaluate import Accuracy, Evaluation


@click.command("eval", cls=Command, example="lmmprune eval out/ --data questions.jsonl --predictions answers.jsonl")
@argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@option("--data", required=True, help="'tiny-llava', or a JSON Lines file with image, prompt, answer(s), kind.")
@option("--limit", type=click.IntRange(min=1), help="Ask only the first so many questions.")
@option("--max-new-tokens", default=16, show_default=True, type=click.IntRange(min=1), help="Cut answers there.")
@option(
    "--match",
    type=click.Choice(["exact", "contains", "vqa"]),
    default="exact",
    show_default=True,
    help="When an answer is right: it is all that is said; it stands in it; or by the number of people who gave it.",
)
@option("--min-accuracy", type=click.FloatRange(0, 1), help="Exit with 1 where a bundle has less, 0 to 1.")
@threads_option()
@option("--predictions", type=click.Path(path_type=Path, dir_okay=False), help="Write every answer, JSON Lines.")
@force_option("predictions that are there", group=GENERAL)
@unsealed_option
@json_option
def command(
    bundles: tuple[Path, ...],
    data: str,
    limit: int | None,
    max_new_tokens: int,
    match: str,
    min_accuracy: float | None,
    threads: int | None,
    predictions: Path | None,
    force: bool,
    as_json: bool,
) -> int:
    """Ask questions with known answers; print the share of right ones, and of right first words, with 95 % intervals.

    Several bundles are asked the same, and compared with the first one, question by question.
    """
    from lmmprune.compiler.bundle.bundle import Bundle
    from lmmprune.compiler.bundle.replace import check_file
    from lmmprune.compiler.data.questions import load_questions
    from lmmprune.compiler.measure.bench import short_names
    from lmmprune.compiler.measure.evaluate import evaluate
    from lmmprune.compiler.runtime.runtime import Runtime

    refuse_ignored(predictions is not None, "is for predictions: add --predictions FILE", "force")
    opened = [Bundle.open(bundle) for bundle in bundles]
    names = short_names(opened)
    if predictions and not predictions.parent.is_dir():
        raise InputError(f"can't write '{predictions}': there is no directory '{predictions.parent}'")
    if predictions:
        check_file(predictions, force=force, option="--predictions")
    questions = load_questions(data)[:limit]
    results = []
    with progress() as bar:
        for name, bundle in zip(names, opened, strict=True):
            task = bar.add_task(f"answers of {name}", total=len(questions))
            runtime = Runtime(bundle, threads=threads)
            advance = functools.partial(bar.update, task, advance=1)
            results.append(evaluate(runtime, questions, max_new_tokens=max_new_tokens, match=match, on_answer=advance))
            runtime.close()
    if predictions:
        _write(predictions, bundles, results)
    found = [
        {
            "bundle": str(path),
            "data": data,
            "match": match,
            "model": bundle.manifest.model,
            "method": bundle.manifest.method,
            "tokens_before": bundle.manifest.tokens_before,
            "image_tokens": bundle.manifest.image_tokens,
            "average_tokens": bundle.manifest.average_tokens,
            "int8": bundle.manifest.precision.int8,
            **result.as_dict(),
        }
        for path, bundle, result in zip(bundles, opened, results, strict=True)
    ]
    if len(found) > 1:
        for one, result in zip(found, results, strict=True):
            one["difference"] = dataclasses.asdict(result.difference(results[0]))
    if as_json:
        print_json(found[0] if len(found) == 1 else {"bundles": found})
    elif len(results) == 1:
        _show_one(opened[0].manifest, results[0])
    else:
        _show_all(names, [bundle.manifest for bundle in opened], results)
    low = [
        f"{name} has {result.overall.value:.1%} right, at least {min_accuracy:.1%} are asked for"
        for name, result in zip(names, results, strict=True)
        if min_accuracy is not None and result.overall.value < min_accuracy
    ]
    for line in low:
        warn(line)
    return 1 if low else 0


def _write(file: Path, bundles: Sequence[Path], results: Sequence[Evaluation]) -> None:
    """Write all answers, whole or not at all; of several bundles each line says whose it is."""
    lines = []
    for path, result in zip(bundles, results, strict=True):
        whose = {"bundle": str(path)} if len(bundles) > 1 else {}
        rows = result.as_dict(predictions=True)["predictions"]
        lines += [json.dumps({**whose, **row}) + "\n" for row in rows]
    from lmmprune.compiler.bundle.atomic import replace_file

    try:
        with replace_file(file) as stream:
            stream.writelines(line.encode() for line in lines)
    except OSError as error:
        raise InputError(f"can't write '{file}' ({error.strerror})") from error


def _show_one(manifest: Manifest, result: Evaluation) -> None:
    rows = [_cells(kind, whole, result.kinds_first_word[kind]) for kind, whole in result.kinds.items()]
    columns = ("questions", "asked", "correct", "95 % interval", "first word", "95 % interval")
    show(table(columns, [*rows, _cells("all", result.overall, result.first_word)]))
    note(f"{manifest.tokens_before} -> {manifest.average_tokens:.4g} image tokens; {result.seconds:.1f} s")


def _show_all(names: Sequence[str], manifests: Sequence[Manifest], results: Sequence[Evaluation]) -> None:
    rows = []
    for name, manifest, result in zip(names, manifests, results, strict=True):
        low, high = result.overall.interval
        beside = result.difference(results[0])
        rows.append(
            [
                name,
                f"{manifest.tokens_before} -> {manifest.average_tokens:.4g}",
                f"{result.overall.value:.1%}",
                f"{low:.1%} .. {high:.1%}",
                f"{result.first_word.value:.1%}",
                "-" if result is results[0] else f"{100 * beside.value:+.1f}",
                "-" if result is results[0] else f"{100 * beside.low:+.1f} .. {100 * beside.high:+.1f}",
            ]
        )
    columns = ("bundle", "tokens", "correct", "95 % interval", "first word", "points beside the first", "95 % interval")
    show(table(columns, rows))
    note(f"{results[0].overall.total} questions; differences are paired, pictures drawn again")


def _cells(name: str, whole: Accuracy, first: Accuracy) -> list[str]:
    cells = [name, str(whole.total)]
    for accuracy in (whole, first):
        low, high = accuracy.interval
        cells += [f"{accuracy.value:.1%}", f"{low:.1%} .. {high:.1%}"]
    return cells
