"""Does KL on a few unlabelled pictures rank variants as accuracy on 2,000 questions does?

python scripts/tiny_llava/kl_and_accuracy.py -o docs/results/kl_and_accuracy

Every variant is led through the unpruned model's answers about 64 other pictures (KL), and asked the 2,000 held-out
questions. What is measured lies in ``--work`` and is used again, so that a killed run goes on.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import click
import numpy as np
from matplotlib import colormaps
from matplotlib.lines import Line2D
from rich.progress import Progress
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import results

from lmmprune.compiler.data.questions import Question, load_questions
from lmmprune.compiler.export.request import Request
from lmmprune.compiler.study.chart_style import LIGHT, label, paper
from lmmprune.compiler.tune.candidate import Candidate
from lmmprune.compiler.tune.measure import UNPRUNED, Lab
from lmmprune.models.tiny_llava.dataset import calibration

METHODS = ("cls", "divprune", "fastv", "freepruner", "pyramiddrop", "random", "uniform", "v2drop")
RATIOS = (0.3, 0.5, 0.7)
PICTURES = 64


def unlabelled() -> list[Question]:
    """Return training scenes, which no held-out question is about."""
    return [
        Question(picture=f"c{one.image_id}", load=lambda image=one.image: image, prompt=one.question, answers=("?",))  # type: ignore[misc]  # mypy can't infer a lambda with a default
        for one in calibration(PICTURES)
    ]


@click.command()
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("docs/results/kl_and_accuracy"), show_default=True
)
@click.option("--work", type=click.Path(path_type=Path), default=Path("kl_and_accuracy.work"), show_default=True)
@click.option("--limit", type=int, help="Ask only the first so many questions, to try the script.")
def main(output: Path, work: Path, limit: int | None) -> None:
    """Write OUTPUT.json, OUTPUT.png and their part of OUTPUT.md."""
    lab = Lab(folder=work, template=Request(model="tiny-llava", output=work), match="exact", threads=1)
    few, many = unlabelled(), sorted(load_questions("tiny-llava"), key=lambda one: one.picture)[:limit]
    variants = [Candidate(method=method, ratio=ratio) for method, ratio in itertools.product(METHODS, RATIOS)]
    rows = []
    with Progress(transient=True) as bar:
        task = bar.add_task("measure", total=len(variants) + 1)
        for candidate in (UNPRUNED, *variants):
            lab.score(candidate, few)
            cell = lab.score(candidate, many, heldout=True)
            bar.update(task, advance=1, description=candidate.label)
            if candidate != UNPRUNED and cell.refused is None:
                base = lab.cell(UNPRUNED).heldout
                lost = 100 * (np.mean(base.right) - np.mean(cell.heldout.right))
                rows.append((candidate.label, float(np.mean(cell.tuning.kl)), float(lost)))
    kl, lost = (np.array([row[place] for row in rows]) for place in (1, 2))
    rank = float(spearmanr(kl, lost).statistic)
    figure, (axes,) = paper(LIGHT, 4.4)
    colours = dict(zip(METHODS, colormaps["tab10"].colors, strict=False))  # type: ignore[attr-defined]  # a listed map has them
    shapes = dict(zip((f"{100 * ratio:g} %" for ratio in RATIOS), "o^s", strict=True))
    for name, x, y in rows:
        method, ratio = name.split(" ", 1)
        axes.plot(x, y, shapes[ratio], color=colours[method], markersize=5)
    keys = [Line2D([], [], color=colour, marker="o", linestyle="", label=name) for name, colour in colours.items()]
    keys += [Line2D([], [], color="black", marker=shape, linestyle="", label=name) for name, shape in shapes.items()]
    axes.legend(handles=keys, fontsize=7, frameon=False, loc="upper left")
    axes.set_xscale("symlog", linthresh=1e-4)
    label(axes, LIGHT, x=f"KL on {PICTURES} unlabelled pictures, nats", y=f"points lost on {len(many)} questions")
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output.with_suffix(".png"))
    table = "\n".join(f"| {name} | {x:.4g} | {y:.1f} |" for name, x, y in sorted(rows, key=lambda row: row[1]))
    text = (
        f"Spearman's rank correlation over {len(rows)} variants: {rank:.3f}.\n\n"
        f"| variant | KL, nats | points lost |\n|---|--:|--:|\n{table}"
    )
    results.write(output, {"spearman": rank, "variants": [list(row) for row in rows]}, text)


if __name__ == "__main__":
    main()
