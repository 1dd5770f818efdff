"""How far to smooth: the error of tiny-llava's INT8 decoder by the strengths that the search may choose from.

python scripts/int8/smoothing_strengths.py -o docs/results/smoothing_strengths

Each row smooths the same float decoder with the strengths 0.2, 0.3, ... up to its own limit, takes min-max ranges on
the calibration samples, and is compared with float on these samples and on held-out questions, one per picture. Both
decoders read the float features and the same answers, token by token, so that nothing but the decoder's integers
differs. The error is that of ``sensitivity.relative_error``: over all samples at once, and of each on its own.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import onnx_ir as ir
from rich.progress import track

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.data.calibration import CalibrationSet, Sample, load_calibration
from lmmprune.compiler.data.questions import TINY_LLAVA, load_questions
from lmmprune.compiler.export.export import export
from lmmprune.compiler.export.request import Request
from lmmprune.compiler.export.values import Ratio
from lmmprune.compiler.quantize.calibrators import Integers, get_calibrator
from lmmprune.compiler.quantize.channels import ChannelStats, observe_channels
from lmmprune.compiler.quantize.feeds import SampleFeeds
from lmmprune.compiler.quantize.measure import measure
from lmmprune.compiler.quantize.observe import load_beside
from lmmprune.compiler.quantize.sensitivity import Answer, Samples, answers_of, relative_error
from lmmprune.compiler.quantize.smooth import search
from lmmprune.models.source import resolve
from lmmprune.passes.int8.insert_qdq import InsertQdq, activations
from lmmprune.passes.int8.int8 import SCHEMES
from lmmprune.passes.int8.smooth_quant import SmoothQuant, find_smoothable

sys.path.insert(0, str(Path(__file__).parents[1]))  # scripts/, where results.py lies

import results

SCHEME = "u8s8"
LIMITS = (None, 0.3, 0.5, 0.7, 0.9)
SETS = ("calibration", "held out")

Runs = Sequence[Sequence[Answer]]
"""The runs of each sample."""


def strengths(limit: float) -> list[float]:
    """Return 0.2, 0.3, ... up to a limit."""
    return [tenth / 10 for tenth in range(2, round(10 * limit) + 1)]


def held_out(count: int) -> CalibrationSet:
    """Return questions about pictures that calibration hasn't seen, one per picture, with their answers."""
    asked = {question.picture: question for question in load_questions(TINY_LLAVA)}
    rows = [Sample(image=q.load(), prompt=q.prompt, answer=q.answers[0]) for q in list(asked.values())[:count]]
    return CalibrationSet(samples=rows, source="held-out questions", generic=False)


def smoothed(
    graph: Path, stats: Mapping[str, ChannelStats], limit: float | None, work: Path
) -> tuple[Path, dict[str, Any]]:
    """Write the decoder, smoothed up to a limit; return it, and what the search found for each activation."""
    if limit is None:
        return graph, {}
    model = ir.load(graph)
    found = search(find_smoothable(model), stats, symmetric=SCHEMES[SCHEME].symmetric, strengths=strengths(limit))
    SmoothQuant(factors={name: row.factors for name, row in found.items() if row.factors is not None})(model)
    path = work / f"{limit}.onnx"
    ir.save(model, path, external_data=f"{path.name}.data")
    return path, {
        name: {"alpha": row.alpha, "before": row.before, "after": row.after, "outlier": row.outlier}
        for name, row in found.items()
    }


def answers(session: Any, samples: Samples) -> Runs:
    """Return the runs of every sample."""
    return [answers_of(session, [sample]) for sample in samples]


def errors(found: Runs, exact: Runs) -> dict[str, float]:
    """Return the relative error over all samples, of the median one and of the worst."""
    each = [relative_error(a, b) for a, b in zip(found, exact, strict=True)]
    together = relative_error(*([run for sample in runs for run in sample] for runs in (found, exact)))
    return {"all": together, "median": statistics.median(each), "worst": max(each)}


def experiment(ratio: float, samples: int, questions: int, work: Path) -> list[dict[str, Any]]:
    """Return a row per limit."""
    export(Request(model=TINY_LLAVA, output=work / "bundle", method="freepruner", tokens=Ratio(ratio)))
    bundle = Bundle.open(work / "bundle")
    data = (load_calibration(resolve(TINY_LLAVA), None, samples), held_out(questions))
    runs = {
        name: SampleFeeds(bundle.manifest, bundle.path, part, bundle.vision).decoder()
        for name, part in zip(SETS, data, strict=True)
    }
    plain = ir.load(bundle.decoder)
    exact = {name: answers(load_beside(bundle.decoder, plain), steps) for name, steps in runs.items()}
    names = [str(group.value.name) for group in find_smoothable(plain)]
    stats = observe_channels(bundle.decoder, names, runs["calibration"])
    rows = []
    for limit in track(LIMITS, transient=True):
        graph, found = smoothed(bundle.decoder, stats, limit, work)
        model = ir.load(graph)
        ranges = measure(
            graph,
            activations(model, SCHEME),
            runs["calibration"],
            calibrator=get_calibrator("minmax"),
            integers=Integers.of(SCHEME),
        )
        InsertQdq(scheme=SCHEME, ranges=ranges)(model)
        session = load_beside(graph, model)
        rows.append(
            {"limit": limit, "smoothed": found}
            | {name: errors(answers(session, steps), exact[name]) for name, steps in runs.items()}
        )
    return rows


def markdown(result: Mapping[str, Any]) -> str:
    """Return the table."""
    before, outlier = (
        statistics.median(norm[key] for norm in result["rows"][-1]["smoothed"].values())
        for key in ("before", "outlier")
    )
    lines = [
        f"tiny-llava, {result['ratio']:.0%} of the visual tokens removed, scheme {SCHEME}, min-max on"
        f" {result['samples']} samples; relative error of the INT8 decoder's logits, and of the products behind each"
        f" norm. Unsmoothed, the largest channel of a norm's output is {outlier:.1f} times the median one (median over"
        " the norms).",
        "",
        "| strengths tried | chosen | products, median | calibration: all | median | worst"
        f" | {result['questions']} held-out questions: all | median | worst |",
        "|---" * 9 + "|",
    ]
    for row in result["rows"]:
        tried = "none" if row["limit"] is None else f"0.2 to {row['limit']:g}"
        norms = row["smoothed"].values()
        chosen = [norm["alpha"] for norm in norms if norm["alpha"] is not None]
        ends = dict.fromkeys(f"{end:g}" for end in (min(chosen), max(chosen))) if chosen else {}
        text = f"{' to '.join(ends)}, for {len(chosen)} of {len(norms)} norms" if chosen else "-"
        products = statistics.median(norm["after"] for norm in norms) if norms else before
        cells = " | ".join(f"{row[name][key]:.4f}" for name in SETS for key in ("all", "median", "worst"))
        lines.append(f"| {tried} | {text} | {products:.4f} | {cells} |")
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--ratio", type=click.FloatRange(0, 1, max_open=True), default=0.5, show_default=True)
@click.option("--samples", type=click.IntRange(1), default=32, show_default=True, help="To calibrate on.")
@click.option("--questions", type=click.IntRange(1, 250), default=60, show_default=True, help="Held out.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("docs/results/smoothing_strengths"),
    show_default=True,
)
def main(ratio: float, samples: int, questions: int, output: Path) -> None:
    """Write OUTPUT.json and OUTPUT.md."""
    with tempfile.TemporaryDirectory() as name:
        rows = experiment(ratio, samples, questions, Path(name))
    result = {"ratio": ratio, "samples": samples, "questions": questions, "rows": rows}
    text = markdown(result)
    results.write(output, result, text)
    click.echo(text)


if __name__ == "__main__":
    main()
