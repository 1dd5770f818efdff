"""What a study says of made-up numbers: findings, words, CSV, charts, and the page in a real browser."""

from __future__ import annotations

import csv
import dataclasses
import html as escaping
import io
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import study_fixtures as fx
from PIL import Image

from lmmprune.compiler.measure.statistics import Estimate
from lmmprune.compiler.study.chart_style import spread
from lmmprune.compiler.study.choice import check_allowed, choose
from lmmprune.compiler.study.commands import export_command
from lmmprune.compiler.study.examples import changed_questions, collect_examples
from lmmprune.compiler.study.findings import Findings
from lmmprune.compiler.study.folder import Folder
from lmmprune.compiler.study.grid import UNPRUNED, Cell
from lmmprune.compiler.study.report import html, write_report
from lmmprune.compiler.study.summary import best_at_focus, bullets, summary
from lmmprune.compiler.study.variants import Variants
from lmmprune.compiler.study.words import points, shares, verdict
from lmmprune.compiler.study.write_csv import csv_text
from lmmprune.compiler.verify.verify import Check
from lmmprune.errors import InputError

REFUSED = ("ficoco-v-0.75", "ficoco-v-0.75-int8")


@pytest.fixture(scope="module")
def findings() -> Findings:
    return fx.made_up(refused=REFUSED)[0]


def test_findings_follow_the_definitions() -> None:
    found, results, group = fx.made_up()
    right = {cell: float(np.mean(result.correct)) for cell, result in results.items()}
    fast = {
        cell: float(np.median(np.divide(group.samples["unpruned"]["ttft_ms"], group.samples[cell.name]["ttft_ms"])))
        for cell in results
    }
    assert len(found.pruned_pairs) == 6
    for pair in found.pruned_pairs:
        plain, both = pair.plain.cell, pair.quantized.cell
        assert both == Cell(method=plain.method, ratio=plain.ratio, precision="int8")
        cost = right[both] - right[plain]
        assert pair.cost.value == pytest.approx(100 * cost)
        assert pair.interaction is not None
        assert pair.interaction.value == pytest.approx(100 * (cost - (right[UNPRUNED.at("int8")] - right[UNPRUNED])))
        expected = fast[both] / (fast[plain] * fast[UNPRUNED.at("int8")])
        assert pair.speed["ttft_ms"].value == pytest.approx(expected)
        assert pair.plain.retention is not None
        assert pair.plain.retention.value == pytest.approx(right[plain] / right[UNPRUNED])


def test_every_precision_is_held_against_floating_point() -> None:
    found, results, _ = fx.made_up(precisions=("fp", "int8", "int4-gptq"))
    assert found.integers == "INT8 and INT4-GPTQ"
    right = {cell: float(np.mean(result.correct)) for cell, result in results.items()}
    assert len(found.pruned_pairs) == 12
    for pair in found.pruned_pairs:
        cell = pair.quantized.cell
        alone = right[UNPRUNED.at(cell.precision)] - right[UNPRUNED]
        assert pair.label == f"{pair.plain.cell.label} {cell.precision}"
        assert pair.interaction is not None
        assert pair.interaction.value == pytest.approx(100 * (right[cell] - right[cell.at("fp")] - alone))
        assert pair.speed
    text = " ".join(bullets(found))
    assert text.count("does to the accuracy of a pruned model") == 2
    assert "speed-up of pruning and INT4-GPTQ together" in text
    page = html(found, [])
    assert "Pruning x INT8 and INT4-GPTQ" in page
    assert "<td>int4-gptq</td>" in page
    words = shlex.split(export_command(UNPRUNED.at("int4-gptq"), fx.SETTINGS, Variants(chosen=())))
    assert words[4:] == ["--int4", "--int4-method", "gptq", "-o", "unpruned-int4-gptq"]


def test_front_is_what_nothing_dominates() -> None:
    found, results, _ = fx.made_up()
    points = {
        row.cell: (row.accuracy.value, row.times["ttft_ms"].speedup.value) for row in found.measured if row.accuracy
    }

    def dominated(cell: Cell) -> bool:
        right, fast = points[cell]
        return any(r >= right and f >= fast and (r, f) != (right, fast) for r, f in points.values())

    assert {row.cell for row in found.front} == {cell for cell in results if not dominated(cell)}
    speeds = [row.times["ttft_ms"].speedup.value for row in found.front]
    assert speeds == sorted(speeds, reverse=True)


def test_words_follow_the_numbers(findings: Findings) -> None:
    text = summary(findings)
    best = best_at_focus(findings)
    assert best is not None
    assert (best.cell.ratio, best.cell.quantized) == (0.5, False)
    rivals = [row for row in findings.measured if row.cell.ratio == 0.5 and not row.cell.quantized]
    assert best.accuracy == max((row.accuracy for row in rivals if row.accuracy), key=lambda one: one.value)
    assert f"{best.cell.method} does best" in text
    assert best.retention is not None
    assert f"retains {shares(best.retention)} %" in text
    holds = sum(pair.interaction.contains(0) for pair in findings.pruned_pairs if pair.interaction)
    assert f"contains 0 in {holds} of 5 cases" in text
    assert "2 cells of the grid can't be had" in text
    assert "FAILED" not in text


def test_words_about_an_interaction_that_is_there(findings: Findings) -> None:
    pair = dataclasses.replace(findings.pruned_pairs[0], interaction=Estimate(value=-9, low=-12.04, high=-6))
    changed = dataclasses.replace(findings, pairs=(findings.pairs[0], pair))
    assert "contains 0 in 0 of 1 cases" in summary(changed)
    assert f"lose more than one after the other for {pair.label} (-9.0 (-12.0 to -6.0))" in summary(changed)
    pair = dataclasses.replace(pair, interaction=Estimate(value=9, low=6, high=12))
    assert f"lose less for {pair.label}" in summary(dataclasses.replace(findings, pairs=(findings.pairs[0], pair)))


def test_words_about_a_failed_check(findings: Findings) -> None:
    row = findings.measured[2]
    bad = dataclasses.replace(row.result, checks=(Check(name="logits", passed=False, found="0.3"),))
    rows = tuple(dataclasses.replace(one, result=bad) if one is row else one for one in findings.rows)
    assert "Checks FAILED: freepruner 50 % float32 (logits)." in summary(dataclasses.replace(findings, rows=rows))


@pytest.mark.parametrize(
    ("low", "high", "words"), [(-1, 1, "contains 0"), (0.5, 1, "above 0"), (-1, -0.5, "below 0"), (0, 1, "contains 0")]
)
def test_verdicts(low: float, high: float, words: str) -> None:
    assert verdict(Estimate(value=low, low=low, high=high), 0) == words


def test_no_negative_zero() -> None:
    assert points(Estimate(value=-0.01, low=-0.04, high=0.06)) == "0.0 (0.0 to +0.1)"


def test_csv_has_every_cell_and_its_interactions(findings: Findings) -> None:
    rows = {row["cell"]: row for row in csv.DictReader(io.StringIO(csv_text(findings)))}
    assert set(rows) == {row.cell.name for row in findings.rows}
    answers = findings.measured[2].result
    told = rows[answers.name]
    assert int(told["correct"]) == sum(answers.correct) < int(told["correct_first_words"]) == sum(answers.first_word)
    assert float(told["accuracy"]) == np.mean(answers.correct)
    assert float(told["first_word_accuracy"]) == np.mean(answers.first_word)
    assert (
        float(told["first_word_accuracy_low"]) < np.mean(answers.first_word) < float(told["first_word_accuracy_high"])
    )
    assert rows["ficoco-v-0.75"]["refused"]
    assert rows["ficoco-v-0.75"]["accuracy"] == ""
    pair = findings.pruned_pairs[0]
    row = rows[pair.quantized.cell.name]
    assert pair.interaction is not None
    assert float(row["accuracy_interaction_points"]) == pair.interaction.value
    assert int(row["accuracy_interaction_points_contains_0"]) == pair.interaction.contains(0)
    assert int(row["ttft_ms_interaction_contains_1"]) == pair.speed["ttft_ms"].contains(1)
    assert float(row["iou_vision_output_mean"]) == 0.97
    assert rows["unpruned"]["accuracy_interaction_points"] == ""


@pytest.mark.parametrize(
    ("options", "charts"),
    [
        ({}, {"retention", "speed", "front", "interaction_accuracy", "interaction_speed"}),
        ({"precisions": ("fp",)}, {"retention", "speed", "front"}),
        ({"ratios": (0,)}, {"front"}),
    ],
)
def test_charts_that_have_something_to_show(tmp_path: Path, options: dict[str, object], charts: set[str]) -> None:
    (tmp_path / "interaction_speed.png").write_bytes(b"of an earlier request")
    files = write_report(fx.made_up(**options)[0], tmp_path)  # type: ignore[arg-type]
    assert {file.stem for file in tmp_path.glob("*.png")} == charts
    assert {file.stem for file in files if file.suffix == ".png"} == charts
    assert all(Image.open(file).width > 700 for file in files if file.suffix == ".png")


def test_page_in_a_browser(findings: Findings, tmp_path: Path) -> None:
    page = write_report(findings, tmp_path)[0]
    text = page.read_text()
    assert not re.search(r"(src|href|srcset|url\()\s*=?\s*[\"']?(https?:)?//", text), "a reference to the network"
    dom, console = fx.chromium(page, tmp_path / "profile")
    assert console == []
    bodies = dict(re.findall(r'<table id="(\w+)">.*?<tbody>(.*?)</tbody>', dom, re.DOTALL))
    rows = {name: len(re.findall("<tr>", body)) for name, body in bodies.items()}
    overlaps = sum(max(len(pair.overlaps), 1) for pair in findings.pruned_pairs)
    expected = {
        "accuracy": 12,
        "kinds": 12,
        "times": 12,
        "interaction": len(findings.pairs),
        "overlap": overlaps,
        "refused": 2,
    }
    assert rows == expected
    row = findings.measured[2]
    assert row.accuracy is not None
    assert row.first_word is not None
    cells = re.search(rf">{re.escape(row.cell.label)}</th><td>float32</td>(.*?)</tr>", bodies["accuracy"])
    assert cells is not None
    assert re.findall("<td>(.*?)</td>", cells[1])[1:3] == [shares(row.accuracy), shares(row.first_word)]
    assert "the method can't: &lt;ask&gt; for less &amp; more" in dom
    listed = re.search(r'<ul class="summary" id="summary">(.*?)</ul>', dom, re.DOTALL)
    assert listed is not None
    said = [line.replace("\u00a0", " ") for line in re.findall("<li>(.*?)</li>", escaping.unescape(listed[1]))]
    assert said == bullets(findings)


# The page in a frame as narrow as a phone: pictures are decoded, and nothing but a table's own box scrolls.
FRAME = """<!doctype html><link rel="icon" href="data:,"><body><iframe width="400" height="900" srcdoc="PAGE"></iframe>
<script>addEventListener("load", () => {
  const inner = document.querySelector("iframe").contentDocument, root = inner.documentElement;
  const shown = [...inner.images].every((image) => image.complete && image.naturalWidth > 0);
  document.body.dataset.found = `${root.clientWidth} ${root.scrollWidth} ${shown}`;
  BROKEN
});</script></body>"""


def test_page_on_a_phone_and_that_the_browser_reports_errors(findings: Findings, tmp_path: Path) -> None:
    text = escaping.escape(write_report(findings, tmp_path)[0].read_text())
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.replace("PAGE", text).replace("BROKEN", 'console.error("seen")'))
    dom, console = fx.chromium(frame, tmp_path / "profile")
    found = re.search(r'data-found="(\d+) (\d+) (\w+)"', dom)
    assert found, "the script of the test ran"
    inner, needed, shown = found.groups()
    assert int(needed) <= int(inner) <= 400
    assert shown == "true"
    assert len(console) == 1
    assert "seen" in console[0]


def test_answers_behind_a_smaller_picture_and_by_kind() -> None:
    found, results, _ = fx.made_up(("downsample", "random"), (0.5,))
    of = {cell.name: np.array(result.correct, bool) for cell, result in results.items()}
    row = next(row for row in found.rows if row.cell.name == "random-0.5")
    wrong = ~of["downsample-0.5"]
    assert row.parts.hard_questions == wrong.sum()
    assert row.parts.hard is not None
    assert row.parts.easy is not None
    assert row.parts.hard.value == pytest.approx(of["random-0.5"][wrong].mean())
    assert row.parts.easy.value == pytest.approx(of["random-0.5"][~wrong].mean())
    assert found.row(UNPRUNED).parts.hard is None
    assert {kind: one.value for kind, one in row.parts.kinds.items()} == pytest.approx(
        {"a": of["random-0.5"][::2].mean(), "b": of["random-0.5"][1::2].mean()}
    )


def test_the_fastest_within_a_loss_and_its_command() -> None:
    found, results, _ = fx.made_up()
    settings = fx.SETTINGS
    chosen = choose(found, 20, settings, Variants(chosen=()))
    base = 100 * np.mean(results[UNPRUNED].correct)
    loss = {cell: base - 100 * np.mean(result.correct) for cell, result in results.items()}
    within = [row for row in found.measured if row.cell.method and loss[row.cell] <= 20 + 1e-9]
    assert chosen.row.speed == max(row.speed for row in within)
    assert chosen.loss.value == pytest.approx(loss[chosen.row.cell])
    words = shlex.split(chosen.command)
    assert words[:2] == ["lmmprune", "export"]
    assert ("--int8" in words) == chosen.row.cell.quantized
    assert words[words.index("--method") + 1] == chosen.row.cell.method
    with pytest.raises(InputError, match=r"none of the 12 pruned variants is within it; the nearest is .* loses"):
        choose(found, 0, settings, Variants(chosen=()))
    with pytest.raises(InputError, match="no right answers are known"):
        check_allowed(1, labelled=False)
    with pytest.raises(InputError, match="expected points"):
        check_allowed(float("nan"), labelled=True)


def test_examples_are_of_what_was_right_before_one_per_picture(tmp_path: Path) -> None:
    found, results, _ = fx.made_up()
    row = next(row for row in found.rows if row.cell.name == "random-0.75")
    chosen = changed_questions(found, row, fx.QUESTIONS)
    assert 0 < len(chosen) <= 6
    assert len({fx.PICTURES[index] for index in chosen}) == len(chosen)
    assert all(results[UNPRUNED].correct[index] and not row.result.correct[index] for index in chosen)
    page = write_report(
        found, tmp_path, shown=row, examples=collect_examples(found, row, fx.QUESTIONS, Folder(path=tmp_path))
    )[0]
    assert page.read_text().count("<dt>pruned</dt>") == len(chosen)


def test_without_times_flops_take_their_place(tmp_path: Path) -> None:
    found = fx.made_up(timed=False)[0]
    row = found.front[0]
    assert row.speed == pytest.approx(1 / (1 - 0.8 * row.cell.ratio))
    write_report(found, tmp_path)
    assert {file.stem for file in tmp_path.glob("*.png")} == {"retention", "front", "interaction_accuracy"}
    text = (tmp_path / "report.html").read_text()
    assert 'id="times"' not in text
    assert "FLOPs of the prefill" in summary(found)


def test_labels_keep_their_distance_and_order() -> None:
    assert spread([0, 10], 1) == [0, 10]
    assert spread([5.2, 5, 5.1], 1) == pytest.approx([6.1, 4.1, 5.1])


def test_tables_are_sorted_by_a_click(findings: Findings, tmp_path: Path) -> None:
    page = write_report(findings, tmp_path)[0]
    script = '<script>document.querySelectorAll("#accuracy thead th")[3].click()</script></body>'
    page.write_text(page.read_text().replace("</body>", script))
    dom, console = fx.chromium(page, tmp_path / "profile")
    assert console == []
    body = re.findall(r'<table id="accuracy">.*?<tbody>(.*?)</tbody>', dom, re.DOTALL)[0]
    values = [float(re.findall("<td>(.*?)</td>", line)[2].split()[0]) for line in re.findall("<tr>(.*?)</tr>", body)]
    assert len(values) == 12
    assert values == sorted(values, reverse=True)
    assert values != [round(100 * row.accuracy.value, 1) for row in findings.measured if row.accuracy]
