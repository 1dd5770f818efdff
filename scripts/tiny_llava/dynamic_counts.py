"""Counts that depend on the picture, on static graphs: a constant, a few buckets, and the fully dynamic reference.

python scripts/tiny_llava/dynamic_counts.py -o docs/results/dynamic_counts

The reference has a bucket for every count from 1 to N, so that each picture gets exactly its own.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from rich.progress import Progress

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.data.questions import load_questions
from lmmprune.compiler.export.export import export
from lmmprune.compiler.export.request import Request
from lmmprune.compiler.export.trace import shared_trace
from lmmprune.compiler.export.values import Auto, Buckets, Tokens
from lmmprune.compiler.measure.evaluate import evaluate
from lmmprune.compiler.runtime.runtime import Runtime

sys.path.insert(0, str(Path(__file__).parents[1]))  # scripts/, where results.py lies

import results

TOKENS = 144
# Stage 2 is off everywhere: buckets share one decoder, which can't cut a number that changes.
COMMON: dict[str, Any] = {"model": "tiny-llava", "method": "inflection", "options": {"llm_keep": "1"}}
VARIANTS: dict[str, Tokens] = {
    "dynamic reference": Buckets((TOKENS - count) / TOKENS for count in range(1, TOKENS + 1)),
    "buckets 0.75,0.85": Buckets((0.75, 0.85)),
    "buckets 0.75,0.8,0.85,0.9": Buckets((0.75, 0.8, 0.85, 0.9)),
    "constant, 50th percentile": Auto(50),
    "constant, 90th percentile": Auto(90),
}


@click.command()
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("docs/results/dynamic_counts"), show_default=True
)
@click.option("--limit", type=int, help="Ask only the first so many questions.")
def main(output: Path, limit: int | None) -> None:
    """Write OUTPUT.json and OUTPUT.md."""
    questions = load_questions("tiny-llava")[:limit]
    pictures = {question.picture: question for question in questions}
    traced = shared_trace()
    rows = []
    with Progress(transient=True) as bar, tempfile.TemporaryDirectory() as folder:
        task = bar.add_task("", total=len(VARIANTS))
        for name, tokens in VARIANTS.items():
            bar.update(task, description=name)
            export(Request(output=Path(folder) / "bundle", force=True, tokens=tokens, **COMMON), traced=traced)
            runtime = Runtime(Bundle.open(Path(folder) / "bundle"))
            tokens = [runtime.encode_image(question.load()).tokens for question in pictures.values()]
            result = evaluate(runtime, questions)
            rows.append({"variant": name, "mean_tokens": statistics.fmean(tokens), **result.as_dict()})
            bar.advance(task)
    lines = ["| variant | tokens per picture | right, % (95 % interval) |", "|---|---|---|"]
    for row in rows:
        low, high = row["interval_95"]
        points = f"{100 * row['accuracy']:.1f} ({100 * low:.1f}-{100 * high:.1f})"
        lines.append(f"| {row['variant']} | {row['mean_tokens']:.1f} | {points} |")
    results.write(output, rows, "\n".join(lines))
    click.echo("\n".join(lines))


if __name__ == "__main__":
    main()
