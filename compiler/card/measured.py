"""What was measured of a bundle, as sections of its card: right answers, faithfulness, time and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.card.markdown import code, number, paper, percent, plain, signed, table
from lmmprune.compiler.card.results import Given, Section, own, place, printed_by, read
from lmmprune.compiler.measure.formats.table import FORMATS
from lmmprune.compiler.measure.report import LABELS
from lmmprune.units import human_bytes

_FIDELITY = {
    "exact": "answers equal, token for token",
    "first": "first token the same",
    "prefix": "of the answer before the first difference",
}


def at_export(bundle: Bundle) -> list[Section]:
    """Return what the export itself measured, if it did; it stands for no comparison, as it has no interval."""
    loss = bundle.manifest.loss
    if loss is None:
        return []
    found = (
        f"On {loss.samples} samples of {code(loss.source)}, led through the unpruned model's greedy answers: KL"
        f" {loss.kl:.3g} nats per token; {loss.same_first} of {loss.samples} answers begin alike. In float32"
        " arithmetic, without an interval."
    )
    return [Section(lines=["### While exporting", "", found, ""], covers=frozenset())]


def answers(given: Given, bundle: Bundle) -> Section:
    """Return what ``eval`` found of a bundle.

    Raises:
        InputError: It isn't such a result, or not of this bundle.
    """
    name, found = read(given, "eval")
    with printed_by("eval", name):
        rows: list[Mapping[str, Any]] = found.get("bundles", [found])
        row, first = own(rows, bundle, name), rows[0]
        form = row.get("format")
        data = code(Path(str(row["data"])).name)
        known = FORMATS.get(form) if form else None
        asked = f"{row['total']} questions of {data}"
        how = f"scored as {code(f'--format {form}')}" if form else f"right by {code('--match ' + row['match'])}"
        beside = {} if row is first else row.get("differences") or {"all": row["difference"]}
        lines = [f"### Right answers: {plain(known.title) if known else data}", ""]
        lines += [f"{asked}, {how}; 95 % intervals.{f' {paper(known.reference)}.' if known else ''}", ""]
        body = _figures(row, beside) if form else _kinds(row, beside)
        if beside:
            lines[-2] += f" Beside: {code(Path(str(first['bundle'])).name)}, on the same questions, in points."
        return Section(lines=[*lines, *body], covers=frozenset({"answers", *([f"format {form}"] if form else [])}))


def _figures(row: Mapping[str, Any], beside: Mapping[str, Any]) -> list[str]:
    """Return a set's own figures; of their parts, which may be many, the file itself tells."""
    cells = []
    for name, one in row["figures"].items():
        if "," in name:
            continue
        share = one["most"] == 1
        value, interval = percent(one) if share else (f"{one['value']:.1f} of {one['most']:g}", _span(one))
        less = [signed(beside[name], 100 if share else 1)] if beside else []
        cells.append([plain(name), value, interval, *less])
    return table(["figure", "value", "interval", *(["beside"] if beside else [])], cells)


def _span(one: Mapping[str, Any]) -> str:
    return f"{one['low']:.1f} .. {one['high']:.1f}"


def _kinds(row: Mapping[str, Any], beside: Mapping[str, Any]) -> list[str]:
    cells = []
    for name, one in [*row["kinds"].items(), ("all", row)]:
        low, high = one["interval_95"]
        share = {"value": one["accuracy"], "low": low, "high": high}
        less = [signed(beside[name], 100) if name in beside else ""] if beside else []
        cells.append([plain(name), str(one["total"]), *percent(share), *less])
    return table(["questions", "asked", "right", "interval", *(["beside"] if beside else [])], cells)


def faithfulness(given: Given, bundle: Bundle) -> Section:
    """Return what ``compare`` found of a bundle.

    Raises:
        InputError: As ``answers``.
    """
    name, found = read(given, "compare")
    with printed_by("compare", name):
        base = found["base"]
        others = {one["bundle"]["sha256"]: one for one in found["others"]}
        row = own([base, *(one["bundle"] for one in found["others"])], bundle, name)
        settings = found["settings"]
        asked = f"{settings['examples']} prompts about {settings['pictures']} pictures, {place(found['machine'])}."
        covers: set[str] = {"time"} if row["times"] else set()
        if row is base:
            lines = [f"Others were compared with it: {asked}", "", *_times(row, None)]
            return Section(lines=["### Faithfulness", "", *lines], covers=frozenset(covers))
        measures = others[bundle.sha256]["measures"]
        cells = [[words, *percent(measures[key])] for key, words in _FIDELITY.items()]
        for key, words in (("kl", "divergence per token, nats"), ("perplexity_ratio", "perplexity over the base's")):
            one = measures[key]
            cells.append([words, number(one["value"]), f"{number(one['low'])} .. {number(one['high'])}"])
        lines = [
            "### Faithfulness",
            "",
            f"Led through the greedy answers of {code(base['name'])} ({number(base['average_tokens'])} visual tokens,"
            f" {plain(base['dtype'])}): {asked} 95 % intervals.",
            "",
            *table(["measure", "value", "interval"], cells),
            *_times(row, base),
        ]
        return Section(lines=lines, covers=frozenset(covers | {"faithfulness"}))


def _times(row: Mapping[str, Any], base: Mapping[str, Any] | None) -> list[str]:
    cells = []
    for key, value in row["times"].items():
        cells.append([LABELS[key], f"{value:.2f} ms"])
        if base is not None:
            ratio = row["ratios"][key]
            cells[-1] += [f"{base['times'][key]:.2f} ms", f"{ratio['value']:.2f} ({_fine(ratio)})"]
    return table(["time", "median", *([] if base is None else ["the base's", "ratio"])], cells) if cells else []


def _fine(one: Mapping[str, Any]) -> str:
    return f"{one['low']:.2f} .. {one['high']:.2f}"


def speed(given: Given, bundle: Bundle) -> Section:
    """Return what ``bench`` found of a bundle.

    Raises:
        InputError: As ``answers``.
    """
    name, found = read(given, "bench")
    with printed_by("bench", name):
        row, first = own(found["rows"], bundle, name), found["rows"][0]
        settings = found["settings"]
        cells = []
        for key, words in LABELS.items():
            one = row["times"][key]
            cells.append([words, f"{one['median']:.2f} ms", f"{one['q1']:.2f} .. {one['q3']:.2f}"])
            if row is not first:
                faster = row["intervals"][key]
                cells[-1].append(f"{faster['value']:.2f} ({_fine(faster)})")
        columns: Sequence[str] = ["time", "median", "quartiles"]
        beside = ""
        if row is not first:
            columns = [*columns, "times faster"]
            beside = f" Beside {code(first['name'])}, within each round, with 95 % intervals."
        lines = [
            "### Time and memory",
            "",
            f"{settings['rounds']} interleaved rounds, {settings['new_tokens']} new tokens each,"
            f" {place(found['machine'])}.{beside}",
            "",
            *table(columns, cells),
        ]
        used = row["memory"]
        if used is not None:
            lines += [f"Peak memory of a process that answers once: {_memory(used)}.", ""]
        return Section(lines=lines, covers=frozenset({"time", *(["memory"] if used is not None else [])}))


def _memory(used: Mapping[str, Any]) -> str:
    device = f", and {human_bytes(used['device'])} of the GPU's" if used["device"] is not None else ""
    return f"{human_bytes(used['peak'])} ({human_bytes(used['base'])} before it loads the bundle){device}"
