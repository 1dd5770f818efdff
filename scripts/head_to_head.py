"""Methods that other run-times ship against the others: accuracy of real bundles, and what they cost at 7B's size.

python scripts/head_to_head.py -o docs/results/head_to_head --cells head_to_head/
python scripts/head_to_head.py -o docs/results/head_to_head_small --model DIR --questions QUESTIONS.jsonl

Every cell exports a bundle and asks it all questions. What is done stays in the folder of cells, and the same command
goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from rich.progress import Progress

import lmmprune
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.data.questions import Question, load_questions
from lmmprune.compiler.export.export import export
from lmmprune.compiler.export.request import Request
from lmmprune.compiler.export.trace import shared_trace
from lmmprune.compiler.export.values import Ratio
from lmmprune.compiler.flops.report import model_report
from lmmprune.compiler.measure.evaluate import evaluate
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.errors import GraphRefusal, InputError
from lmmprune.passes.methods import METHODS

sys.path.insert(0, str(Path(__file__).parent))  # scripts/, where results.py lies

import results

# Where costs are told: the papers' model, half of its tokens.
LARGE, KEPT = "llava-1.5-7b", 288


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method as somebody runs it.

    Attributes:
        method: Its name.
        options: Its hyper-parameters, as text.
        run_by: Whose method it is in practice; empty: nobody's that we know of, or this project's.
    """

    method: str
    options: Mapping[str, str] = field(default_factory=dict)
    run_by: str = ""

    @property
    def name(self) -> str:
        """Name of the row, as in the tables of what choosing costs."""
        return ", ".join([self.method, *(f"{key}={value}" for key, value in self.options.items())])


ROWS = (
    Row(method="dart", options={"form": "embedding"}, run_by="TensorRT Edge-LLM"),
    Row(method="cdpruner", options={"kernel": "blend"}, run_by="OpenVINO GenAI"),
    Row(method="cdpruner"),
    Row(method="dart", run_by="its paper, LightCompress"),
    Row(method="divprune", run_by="LightCompress"),
    Row(method="fastv", run_by="LightCompress"),
    Row(method="vispruner", run_by="LightCompress"),
    Row(method="cls", run_by="LightCompress"),
    *(Row(method=name) for name in ("visionzip", "scope", "mmtok", "dpp", "priortr", "v2drop", "freepruner")),
    Row(method="downsample", run_by="baseline"),
    Row(method="random", run_by="baseline"),
)


class Cells:
    """What was measured so far, one file each; what was asked of another model or other questions counts as nothing."""

    def __init__(self, folder: Path, about: str) -> None:
        self._folder, self._about = folder, about
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return a cell's result, measured now if it isn't there."""
        file = self._folder / f"{name.replace(' ', '-')}.json"
        if file.is_file():
            stored = json.loads(file.read_text(encoding="utf-8"))
            if stored["about"] == self._about:
                return dict(stored["result"])
        result = measure()
        file.write_text(json.dumps({"about": self._about, "result": result}) + "\n", encoding="utf-8")
        return result


def measure(model: str, questions: Sequence[Question], row: Row | None, ratio: float, traced: Any) -> dict[str, Any]:
    """Export a bundle and ask it everything; a schedule that the model can't have is a result, too."""
    pruned: dict[str, Any] = {} if row is None else {"method": row.method, "options": dict(row.options)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bundle"
        try:
            report = export(Request(model=model, output=path, tokens=Ratio(ratio), **pruned), traced=traced)
        except (InputError, GraphRefusal) as error:
            if row is None:
                raise
            return {"refused": str(error)}
        manifest = report.manifest
        schedule = [[stage.site, stage.tokens_out] for stage in manifest.schedule]
        found = evaluate(Runtime(Bundle.open(path)), questions).as_dict()
    return {"tokens": manifest.average_tokens, "of": manifest.tokens_before, "schedule": schedule, **found}


def costs(row: Row, ratios: Sequence[float], selection: Mapping[str, float]) -> dict[str, Any]:
    """Return sites, FLOPs of the prefill and of what choosing costs, at LLaVA-1.5-7B's size."""
    flops: dict[str, float | None] = {}
    sites: list[str] = []
    for ratio in ratios:
        try:
            found = model_report(LARGE, ratio=ratio, method=row.method, options=dict(row.options))
        except InputError:
            flops[str(ratio)] = None
            continue
        flops[str(ratio)] = found["prefill_flops"]["after"]
        sites = sites or [site["site"] for site in found["sites"]]
    return {"sites": sites, "prefill_flops": flops, "selection_ms": selection.get(row.name)}


def selection_costs() -> dict[str, float]:
    """Return the ms that choosing 288 of 576 tokens takes, in the vision graph or in the decoder's prefill."""
    pages = results.ROOT / "docs" / "results"
    found = {row["method"]: row["selection_ms"] for row in results.read(pages / "selection_cost")}
    if (pages / "selection_cost_decoder.json").is_file():
        rows = results.read(pages / "selection_cost_decoder")
        found |= {row["method"]: row["prefill_ms"] for row in rows if row["keep"] == KEPT}
    return found


def accuracy_table(unpruned: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], ratios: Sequence[float]) -> str:
    """Return the accuracies: whole answers with their interval, and first words."""
    columns = ["method", "run by"]
    for ratio in ratios:
        columns += [f"{ratio:.0%} removed, right", "first word"]
    lines = [_line(columns), _line(["---"] * len(columns))]
    lines.append(_line(["unpruned", "", *_shares(unpruned), *[""] * (2 * len(ratios) - 2)]))
    for row in rows:
        cells = [row["name"], row["run_by"]]
        for ratio in ratios:
            cells += _shares(row["cells"][str(ratio)])
        lines.append(_line(cells))
    return "\n".join(lines)


def cost_table(rows: Sequence[Mapping[str, Any]], ratios: Sequence[float]) -> str:
    """Return what the methods cost at LLaVA-1.5-7B's size."""
    columns = ["method", "cuts at", *(f"{ratio:.0%}: prefill, TFLOPs" for ratio in ratios), f"choosing {KEPT}, ms"]
    lines = [_line(columns), _line(["---"] * len(columns))]
    for row in rows:
        large = row["large"]
        sites = " .. ".join(dict.fromkeys((*large["sites"][:1], *large["sites"][-1:])))
        flops = [large["prefill_flops"][str(ratio)] for ratio in ratios]
        chosen = large["selection_ms"]
        lines.append(
            _line(
                [
                    row["name"],
                    sites,
                    *("-" if count is None else f"{count / 1e12:.2f}" for count in flops),
                    "-" if chosen is None else f"{chosen:.1f}",
                ]
            )
        )
    return "\n".join(lines)


def _shares(cell: Mapping[str, Any]) -> list[str]:
    if "refused" in cell:
        return ["-", "-"]
    low, high = cell["interval_95"]
    return [
        f"{_percent(cell['accuracy'])} ({_percent(low)}-{_percent(high)})",
        _percent(cell["first_word"]["accuracy"]),
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _about(model: str, data: str, questions: Sequence[Question]) -> str:
    """Return what a cell's result depends on besides the cell: the questions' words, whatever their file is called."""
    words = hashlib.sha256(repr([(q.prompt, q.answers, q.kind) for q in questions]).encode()).hexdigest()
    return f"{model} {data} {len(questions)} {words} {lmmprune.__version__}"


@click.command()
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("docs/results/head_to_head"), show_default=True
)
@click.option("--model", default="tiny-llava", show_default=True, help="Alias or directory.")
@click.option("--questions", "data", default="tiny-llava", show_default=True, help="'tiny-llava' or a JSON Lines file.")
@click.option("--limit", type=int, help="Ask only the first so many questions.")
@click.option("--ratios", default="0.5,0.75,0.9", show_default=True)
@click.option("--cells", type=click.Path(path_type=Path), help="Keep what is measured here.  [default: nowhere]")
def main(output: Path, model: str, data: str, limit: int | None, ratios: str, cells: Path | None) -> None:
    """Write OUTPUT.json and OUTPUT.md."""
    questions = load_questions(data)[:limit]
    wanted = [float(ratio) for ratio in ratios.split(",")]
    selection = selection_costs()
    shown = [row for row in ROWS if row.method in METHODS]
    traced = shared_trace()
    with tempfile.TemporaryDirectory() as folder, Progress(transient=True) as bar:
        store = Cells(cells or Path(folder), _about(model, data, questions))
        task = bar.add_task("unpruned", total=len(shown) * len(wanted) + 1)

        def cell(row: Row | None, ratio: float) -> dict[str, Any]:
            name = "unpruned" if row is None else f"{row.name}-{ratio}"
            bar.update(task, description=name)
            found = store.get(name, lambda: measure(model, questions, row, ratio, traced))
            bar.advance(task)
            return found

        unpruned = cell(None, 0.0)
        rows = [
            {
                "name": row.name,
                "run_by": row.run_by,
                "cells": {str(ratio): cell(row, ratio) for ratio in wanted},
                "large": costs(row, wanted, selection),
            }
            for row in shown
        ]
    text = [
        f"{len(questions):,} questions to {model}, % right (95 % interval):",
        accuracy_table(unpruned, rows, wanted),
        f"What they cost at the size of {LARGE}, 576 visual tokens and 60 of text:",
        cost_table(rows, wanted),
    ]
    found = {"model": model, "questions": len(questions), "unpruned": unpruned, "rows": rows}
    results.write(output, found, "\n\n".join(text))
    click.echo("\n\n".join(text))


if __name__ == "__main__":
    main()
