"""Find freePruner's shallow layer and pivot share on tiny-llava's TRAINING scenes (the held-out ones stay unseen).

python scripts/tiny_llava/tune_freepruner.py -o docs/freepruner_defaults.md
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
from rich.progress import track

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.data.questions import Question
from lmmprune.compiler.export.export import export
from lmmprune.compiler.export.request import Request
from lmmprune.compiler.export.values import Ratio
from lmmprune.compiler.measure.evaluate import evaluate
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.models.tiny_llava.dataset import calibration

LAYERS = (0, 1, 2, 3)
FRACTIONS = (0.25, 0.5, 0.75, 1.0)


def accuracy(questions: list[Question], ratio: float, layer: int, fraction: float) -> float:
    """Return the share of right answers of one setting."""
    options = {"shallow_layer": str(layer), "pivot_fraction": str(fraction)}
    with tempfile.TemporaryDirectory() as folder:
        export(
            Request(
                model="tiny-llava", output=Path(folder) / "b", method="freepruner", options=options, tokens=Ratio(ratio)
            )
        )
        return evaluate(Runtime(Bundle.open(Path(folder) / "b")), questions).overall.value


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("docs/freepruner_defaults.md"))
@click.option("--ratio", default=0.75, show_default=True)
@click.option("--scenes", default=800, show_default=True, help="Training scenes, one question each.")
def main(output: Path, ratio: float, scenes: int) -> None:
    """Write a table of accuracy by shallow layer and pivot share."""
    questions = [
        Question(
            picture=str(example.image_id),
            load=lambda image=example.image: image,  # type: ignore[misc]  # bound now, not when it is called
            prompt=example.question,
            answers=(example.answer,),
            kind=example.kind,
        )
        for example in calibration(scenes)
    ]
    rows = [f"| shallow layer | {' | '.join(f'pivots {fraction:.0%}' for fraction in FRACTIONS)} |"]
    rows.append("|---" * (len(FRACTIONS) + 1) + "|")
    for layer in track(LAYERS, transient=True):
        cells = [accuracy(questions, ratio, layer, fraction) for fraction in FRACTIONS]
        rows.append(f"| {layer} | {' | '.join(f'{100 * cell:.1f}' for cell in cells)} |")
    text = f"Accuracy on {len(questions)} questions about training scenes, {ratio:.0%} removed, fp32:\n\n"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text + "\n".join(rows) + "\n", encoding="utf-8")
    click.echo(output.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
