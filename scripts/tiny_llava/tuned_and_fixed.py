"""Is what ``lmmprune tune`` chose faster than every method as it comes, at the same loss?

lmmprune tune --model tiny-llava --data QUESTIONS --heldout tiny-llava --max-loss 1 --methods all \
  --ratios 0.25,0.3,0.35,0.4,0.5,0.6 --positions original -o COARSE/
lmmprune tune --model tiny-llava --data QUESTIONS --heldout tiny-llava --max-loss 1 --positions original --rounds 60 \
  --methods ficoco-v,cls,tome,vtc-cls,fastv --ratios 0.4,0.45,0.5 -o TUNED/
python scripts/tiny_llava/tuned_and_fixed.py TUNED/ --work BUNDLES/ -o docs/results/tuned

QUESTIONS are those of ``scripts/tuning_questions.py tiny-llava --scenes 200``. The second run is finer, of what led the
first.

Of each method with its default hyper-parameters, the largest of those ratios that loses no more on the held-out
questions is taken: the answers decide, which the choice itself never saw. Then all are timed in interleaved rounds.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # scripts/, where results.py lies

import results

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.data.questions import Question, load_questions
from lmmprune.compiler.export.export import export
from lmmprune.compiler.export.request import Request
from lmmprune.compiler.export.trace import shared_trace
from lmmprune.compiler.export.values import Ratio
from lmmprune.compiler.measure.bench import bench
from lmmprune.compiler.measure.evaluate import Evaluation, evaluate
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.errors import GraphRefusal, InputError
from lmmprune.models.registry import tiny_llava_dir
from lmmprune.passes.methods import METHODS

HOPELESS = 2.0
"""Points that a ratio lost on the questions of the tuning, from which on it isn't asked again."""
SEEN = 64
"""On so many of them at least."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A method at the largest ratio that keeps the loss; where none does, ``ratio`` and ``bundle`` are None.

    Attributes:
        lost: Points, with their 95 % interval.
    """

    method: str
    ratio: float | None = None
    bundle: str | None = None
    lost: tuple[float, float, float] = (0.0, 0.0, 0.0)


class Bench:
    """The questions, the unpruned model's answers, and the bundles."""

    def __init__(self, tuned: Path, work: Path, limit: int | None) -> None:
        self.tuned, self.work, self.traced = tuned, work, shared_trace()
        self.questions: Sequence[Question] = load_questions("tiny-llava")[:limit]
        self.base_path = work / "unpruned"
        export(Request(model="tiny-llava", output=self.base_path, force=True), traced=self.traced)
        self.base = self.ask(self.base_path)

    def ask(self, bundle: Path) -> Evaluation:
        """Return a bundle's answers to all questions."""
        return evaluate(Runtime(Bundle.open(bundle), threads=1), self.questions)

    def hopeless(self, method: str, ratio: float) -> bool:
        """Whether the tuning saw it lose far more than is allowed."""
        own, base = (self._right(name) for name in (f"{method}-{100 * ratio:g}", "unpruned"))
        if own is None or base is None or len(own) < SEEN:
            return False
        return 100 * sum(b - o for o, b in zip(own, base, strict=False)) / len(own) > HOPELESS

    def _right(self, name: str) -> Sequence[float] | None:
        file = self.tuned / "cells" / f"{name}.json"
        return json.loads(file.read_text(encoding="utf-8"))["tuning"]["right"] if file.is_file() else None

    def largest(self, method: str, ratios: Sequence[float], budget: float) -> Tried:
        """Return a method at the largest ratio whose held-out loss is within the budget; kept for the next run."""
        record = self.work / f"{method}.json"
        if record.is_file():
            return Tried(**json.loads(record.read_text(encoding="utf-8")))
        found = next(self._within(method, ratios, budget), Tried(method=method))
        record.write_text(json.dumps(dataclasses.asdict(found)) + "\n", encoding="utf-8")
        return found

    def _within(self, method: str, ratios: Sequence[float], budget: float) -> Iterator[Tried]:
        for ratio in sorted(ratios, reverse=True):
            if self.hopeless(method, ratio):
                continue
            path = self.work / f"{method}-{ratio}"
            request = Request(model="tiny-llava", output=path, method=method, tokens=Ratio(ratio), force=True)
            try:
                export(request, traced=self.traced)
            except (InputError, GraphRefusal):
                continue  # no such schedule on four layers
            lost = self.lost(path)
            click.echo(f"{method} {ratio}: {lost[0]:+.2f} points", err=True)
            if lost[0] <= budget:
                yield Tried(method=method, ratio=ratio, bundle=str(path), lost=lost)

    def lost(self, bundle: Path) -> tuple[float, float, float]:
        """Return the points that a bundle loses, with their interval."""
        found = self.base.difference(self.ask(bundle))
        return 100 * found.value, 100 * found.low, 100 * found.high

    def chosen(self, name: str) -> Tried:
        """Return the finalist of this name, whose bundle lies in the run's folder, asked again."""
        path = self.tuned / "bundles" / name
        return Tried(method=f"chosen: {name}", bundle=str(path), lost=self.lost(path))


@click.command()
@click.argument("tuned", type=click.Path(exists=True, path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("docs/results/tuned"), show_default=True)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for the bundles.")
@click.option("--ratios", default="0.25,0.3,0.35,0.4,0.5,0.6", show_default=True)
@click.option("--budget", default=1.0, show_default=True, help="Points that may be lost.")
@click.option("--rounds", default=60, show_default=True)
@click.option("--limit", type=int, help="Ask only the first so many questions.")
def main(tuned: Path, output: Path, work: Path, ratios: str, budget: float, rounds: int, limit: int | None) -> None:
    """Write OUTPUT.json and OUTPUT.md."""
    work.mkdir(parents=True, exist_ok=True)
    front = json.loads((tuned / "front.json").read_text(encoding="utf-8"))
    bed = Bench(tuned, work, limit)
    rows = [bed.chosen(front["choice"]["fastest within the budget"])]
    rows += [bed.largest(method, [float(ratio) for ratio in ratios.split(",")], budget) for method in METHODS]
    timed = [row for row in rows if row.bundle is not None]
    example = tiny_llava_dir() / "examples"
    report = bench(
        [bed.base_path, *(Path(str(row.bundle)) for row in timed)],
        example / "scene_003.png",
        "which digit is bottommost?",
        rounds=rounds,
        memory=False,
    )
    table: list[dict[str, Any]] = []
    for row, times in zip(timed, report.rows[1:], strict=True):
        speed = times.intervals["ttft_ms"]
        table.append(
            {
                "method": row.method,
                "ratio": row.ratio,
                "points_lost": row.lost,
                "tokens": times.image_tokens,
                "ttft_ms": times.times["ttft_ms"].median,
                "ttft_speedup": [speed.value, speed.low, speed.high],
                "ms_per_token_speedup": times.intervals["ms_per_token"].value,
            }
        )
    table.sort(key=lambda row: -row["ttft_speedup"][0])
    none = [row.method for row in rows if row.bundle is None]
    text = [
        f"{len(bed.questions):,} held-out questions, at most {budget:g} points lost; {rounds} interleaved rounds:",
        "\n".join(
            [
                "| method | removed | tokens | points lost | to the first token | per token |",
                "|---|--:|--:|---|---|--:|",
                *(_line(row) for row in table),
            ]
        ),
        f"No ratio of {ratios} keeps the loss: {', '.join(f'`{name}`' for name in none)}." if none else "",
    ]
    results.write(output, {"budget": budget, "rows": table, "none": none}, "\n\n".join(text))
    click.echo("\n\n".join(text))


def _line(row: dict[str, Any]) -> str:
    lost, low, high = row["points_lost"]
    speed, slow, fast = row["ttft_speedup"]
    cells = [
        row["method"],
        "" if row["ratio"] is None else f"{row['ratio']:.0%}",
        f"{row['tokens']:.0f}",
        f"{lost:+.2f} ({low:+.2f}..{high:+.2f})",
        f"{speed:.2f}x ({slow:.2f}-{fast:.2f})",
        f"{row['ms_per_token_speedup']:.2f}x",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
