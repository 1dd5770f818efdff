"""Per-tensor ranges of tiny-llava's activations: what single tokens do to them, pruned or not, smoothed or not.

python scripts/int8/activation_ranges.py -o docs/results/activation_ranges

Every activation that INT8 quantizes is watched on the calibration samples (prefill and decode steps). Its range is
taken over all tokens, without the first one (CLS in the encoder, BOS in the decoder), and without the one token of each
sample that reaches furthest; the step is the range over 255 for each calibrator's range.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click
from rich.progress import Progress
from token_ranges.labels import RATIOS
from token_ranges.measure import measure
from token_ranges.picture import draw
from token_ranges.table import markdown

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.data.calibration import load_calibration
from lmmprune.compiler.export.export import export
from lmmprune.compiler.export.request import Request
from lmmprune.compiler.export.trace import shared_trace
from lmmprune.compiler.export.values import Ratio
from lmmprune.models.source import resolve

sys.path.insert(0, str(Path(__file__).parents[1]))  # scripts/, where results.py lies

import results


@click.command()
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("docs/results/activation_ranges"), show_default=True
)
@click.option("--samples", type=int, default=32, show_default=True)
@click.option("--worst", type=int, default=8, show_default=True, help="Rows of each table.")
@click.option("--draw-only", is_flag=True, help="Draw from OUTPUT.json again.")
def main(output: Path, samples: int, worst: int, draw_only: bool) -> None:
    """Write OUTPUT.json, OUTPUT.md and OUTPUT.png."""
    if draw_only:
        found = results.read(output)
    else:
        found = {}
        data, traced = load_calibration(resolve("tiny-llava"), None, samples), shared_trace()
        with Progress(transient=True) as bar, tempfile.TemporaryDirectory() as name:
            task = bar.add_task("", total=len(RATIOS))
            for ratio in RATIOS:
                bar.update(task, description=f"ratio {ratio}")
                place = Path(name) / str(ratio)
                export(
                    Request(
                        model="tiny-llava",
                        output=place / "bundle",
                        method="freepruner",
                        tokens=Ratio(ratio),
                        force=True,
                    ),
                    traced=traced,
                )
                found[str(ratio)] = measure(Bundle.open(place / "bundle"), place, data)
                bar.advance(task)
        results.write(output, found, markdown(found, worst))
    text = markdown(found, worst)
    draw(found, output.with_suffix(".png"))
    click.echo(text)


if __name__ == "__main__":
    main()
