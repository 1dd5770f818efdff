"""``lmmprune run --data``: answer a file of questions, as many at once as the bundle takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmmprune.compiler.cli.output import print_json
from lmmprune.errors import LmmpruneError

if TYPE_CHECKING:
    from lmmprune.compiler.data.questions import Question
    from lmmprune.compiler.runtime.answer import Answer
    from lmmprune.compiler.runtime.sampling import Picks


def answer_all(
    bundle: Path,
    data: str,
    max_new_tokens: int,
    sampling: Picks,
    stop: Sequence[str],
    threads: int | None,
    *,
    stats: bool,
    as_json: bool,
) -> None:
    """Print a line per answer, in the order of the file; as JSON, all of them with their figures.

    Raises:
        LmmpruneError: A question can't be read or asked, or the bundle can't be loaded; the answers before it are
            printed, or as JSON with it.
    """
    from lmmprune.api.model import load
    from lmmprune.compiler.data.check_questions import check_questions
    from lmmprune.compiler.data.questions import load_examples
    from lmmprune.compiler.runtime.ask_all import ask_all

    questions = load_examples(data)
    rows: list[dict[str, Any]] = []
    spent = 0.0
    with load(bundle, threads=threads) as model:
        check_questions(model.manifest, questions)
        made = {"load_ms": model.load_ms, "answers": rows}
        asked = ask_all(model.runtime, questions, max_new_tokens, sampling=sampling, stop=stop)
        try:
            for number, (question, answer) in enumerate(asked):
                # The times of a row are those of its whole batch.
                if number % model.manifest.rows == 0:
                    spent += answer.stats.ttft_ms + answer.stats.decode_ms
                if as_json:
                    rows.append(_row(question, answer))
                else:
                    click.echo(" ".join(answer.text.split("\n")))
        except LmmpruneError as error:
            error.made = made
            raise
        if as_json:
            print_json(made)
        elif stats:
            rate = len(questions) / spent * 1e3 if spent else 0.0
            line = f"load {model.load_ms:.0f} ms, {len(questions)} answers, {rate:.2f} per second"
            click.echo(line, err=True)  # asked for, also with -q


def _row(question: Question, answer: Answer) -> dict[str, Any]:
    """Return an answer as JSON has it."""
    return {
        "image": question.picture,
        "prompt": question.prompt,
        "answer": answer.text,
        "tokens": answer.tokens,
        "kept_indices": None if answer.kept is None else answer.kept.tolist(),
        "stats": answer.stats.as_dict(),
    }
