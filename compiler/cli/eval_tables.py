"""The tables of ``lmmprune eval``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmmprune.compiler.cli.output import note, show
from lmmprune.compiler.cli.table import table

if TYPE_CHECKING:
    from lmmprune.compiler.bundle.manifest import Manifest
    from lmmprune.compiler.measure.evaluate import Accuracy, Evaluation
    from lmmprune.compiler.measure.formats.format import Format
    from lmmprune.compiler.measure.statistics import Estimate


def show_one(manifest: Manifest, result: Evaluation) -> None:
    """Show one bundle: a row per kind of question."""
    rows = [_cells(kind, whole, result.kinds_first_word[kind]) for kind, whole in result.kinds.items()]
    columns = ("questions", "asked", "correct", "95 % interval", "first word", "95 % interval")
    show(table(columns, [*rows, _cells("all", result.overall, result.first_word)]))
    note(f"{manifest.tokens_before} -> {manifest.average_tokens:.4g} image tokens; {result.seconds:.1f} s")


def show_figures(form: Format, names: Sequence[str], results: Sequence[Evaluation]) -> None:
    """Show the set's own figures: of one bundle with intervals, of several beside those of the first."""
    found = [result.figures for result in results if result.figures is not None]
    formulas, values = found[0].formulas, [one.estimates() for one in found]
    beside = [result.differences(results[0]) for result in results[1:]]
    rows = []
    for name, formula in formulas.items():
        row = [name, _figure(values[0][name].value, formula.most)]
        if len(results) == 1:
            row.append(f"{_figure(values[0][name].low, formula.most)} .. {_figure(values[0][name].high, formula.most)}")
        for own, less in zip(values[1:], beside, strict=True):
            row += [_figure(own[name].value, formula.most), _points(less[name], formula.most)]
        rows.append([*row, "100 %" if formula.most == 1 else f"{formula.most:g} points"])
    others = [title for name in names[1:] for title in (name, "points beside the first, 95 % interval")]
    show(table([form.title, names[0], *(others or ["95 % interval"]), "of"], rows))
    note(f"{results[0].overall.total} questions; {form.reference}; pictures drawn again")


def _figure(value: float, most: float) -> str:
    return f"{value:.1%}" if most == 1 else f"{value:.1f}"


def _points(less: Estimate, most: float) -> str:
    scale = 100 if most == 1 else 1
    return f"{scale * less.value:+.1f} ({scale * less.low:+.1f} .. {scale * less.high:+.1f})"


def show_all(names: Sequence[str], manifests: Sequence[Manifest], results: Sequence[Evaluation]) -> None:
    """Show several bundles: a row each, beside the first."""
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
