"""``lmmprune eval``: measure a bundle's accuracy."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmmprune.compiler.cli import completion
from lmmprune.compiler.cli.command import GENERAL, Command, argument, option
from lmmprune.compiler.cli.eval_tables import show_all, show_figures, show_one
from lmmprune.compiler.cli.given import refuse_ignored
from lmmprune.compiler.cli.options import force_option, threads_option, unsealed_option
from lmmprune.compiler.cli.output import json_option, print_json, warn
from lmmprune.compiler.cli.progress import progress
from lmmprune.errors import InputError

if TYPE_CHECKING:
    from lmmprune.compiler.data.questions import Question
    from lmmprune.compiler.measure.evaluate import Evaluation
    from lmmprune.compiler.measure.formats.format import Format


@click.command("eval", cls=Command, example="lmmprune eval out/ --data questions.jsonl --predictions answers.jsonl")
@argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@option(
    "--data",
    required=True,
    help="'tiny-llava', a JSON Lines file with image, prompt, answer(s), kind; or the folder of --format.",
)
@option(
    "--format",
    "form",
    type=completion.FORMAT,
    help="The public set in the folder, which says how to ask and what is right: pope, gqa, mme, textvqa, scienceqa,"
    " mmbench, refcoco.",
)
@option(
    "--pictures",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the set's pictures are.  [default: where its own layout has them]",
)
@option("--limit", type=click.IntRange(min=1), help="Ask only the first so many questions.")
@option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    help="Cut answers there.  [default: 16, or what the format needs]",
)
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
    form: str | None,
    pictures: Path | None,
    limit: int | None,
    max_new_tokens: int | None,
    match: str,
    min_accuracy: float | None,
    threads: int | None,
    predictions: Path | None,
    force: bool,
    as_json: bool,
) -> int:
    """Ask questions with known answers; print the share of right ones, and of right first words, with 95 % intervals.

    Several bundles are asked the same, and compared with the first one, question by question. With --format, the
    figures are those of the set's own paper.
    """
    from lmmprune.compiler.bundle.bundle import Bundle
    from lmmprune.compiler.bundle.replace import check_file
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
    chosen, questions = _questions(data, form, pictures, limit)
    results = []
    with progress() as bar:
        for name, bundle in zip(names, opened, strict=True):
            task = bar.add_task(f"answers of {name}", total=len(questions))
            runtime = Runtime(bundle, threads=threads)
            advance = functools.partial(bar.update, task, advance=1)
            results.append(
                evaluate(
                    runtime,
                    questions,
                    max_new_tokens=max_new_tokens,
                    match=match,
                    form=chosen,
                    on_answer=advance,
                )
            )
            runtime.close()
    if predictions:
        _write(predictions, bundles, results)
    found = [
        {
            "bundle": str(path),
            "sha256": bundle.sha256,
            "data": data,
            **({"format": chosen.name} if chosen else {"match": match}),
            "model": bundle.manifest.model,
            "method": bundle.manifest.method,
            "tokens_before": bundle.manifest.tokens_before,
            "image_tokens": bundle.manifest.image_tokens,
            "average_tokens": bundle.manifest.average_tokens,
            "dtype": bundle.manifest.precision.dtype,
            "int8": bundle.manifest.precision.int8,
            "int4": bundle.manifest.precision.group,
            "target": bundle.manifest.target,
            **result.as_dict(),
        }
        for path, bundle, result in zip(bundles, opened, results, strict=True)
    ]
    if len(found) > 1:
        for one, result in zip(found, results, strict=True):
            one["difference"] = dataclasses.asdict(result.difference(results[0]))
            if chosen:
                beside = result.differences(results[0])
                one["differences"] = {name: dataclasses.asdict(found) for name, found in beside.items()}
    if as_json:
        print_json(found[0] if len(found) == 1 else {"bundles": found})
    elif chosen:
        show_figures(chosen, names, results)
    elif len(results) == 1:
        show_one(opened[0].manifest, results[0])
    else:
        show_all(names, [bundle.manifest for bundle in opened], results)
    low = [
        f"{name} has {result.overall.value:.1%} right, at least {min_accuracy:.1%} are asked for"
        for name, result in zip(names, results, strict=True)
        if min_accuracy is not None and result.overall.value < min_accuracy
    ]
    for line in low:
        warn(line)
    return 1 if low else 0


def _questions(
    data: str, form: str | None, pictures: Path | None, limit: int | None
) -> tuple[Format | None, list[Question]]:
    """Return the format, if there is one, and what to ask."""
    from lmmprune.compiler.data.questions import load_questions
    from lmmprune.compiler.measure.formats.table import get_format, read_format

    refuse_ignored(form is not None, "is for public sets: add --format", "pictures")
    refuse_ignored(form is None, "is for questions of your own: --format says what is right", "match")
    if form is None:
        return None, load_questions(data)[:limit]
    chosen = get_format(form)
    return chosen, read_format(chosen, Path(data), pictures, limit)


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
