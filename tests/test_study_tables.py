"""The pages that scripts make of a study: figures and labels are those of its CSV."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import click
import pytest
import study_fixtures as fx
from click.testing import CliRunner

from lmmprune.compiler.study.findings import Findings
from lmmprune.compiler.study.write_csv import csv_text

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import accuracy
    import interaction

    return accuracy, interaction


@pytest.fixture
def study(tmp_path: Path) -> tuple[Path, Findings]:
    findings = fx.made_up(precisions=("fp", "int8", "int4"))[0]
    (tmp_path / "results.csv").write_text(csv_text(findings), encoding="utf-8")
    return tmp_path, findings


def test_accuracies_and_interactions_are_those_of_the_study(
    scripts: Any, study: tuple[Path, Findings], tmp_path: Path
) -> None:
    folder, findings = study
    for script, name in zip(scripts, ("accuracies", "interactions"), strict=True):
        page = tmp_path / f"{name}.md"
        done = CliRunner().invoke(script.main, [str(folder), "-o", str(tmp_path / name), "--page", str(page)])
        assert done.exit_code == 0, done.output
        text = page.read_text(encoding="utf-8")
        for pair in findings.pairs:
            row = next(row for row in findings.rows if row.cell == pair.plain.cell)
            if row.cell.method is None:
                continue
            assert row.cell.series in text
            if name == "accuracies":
                assert f"{100 * row.accuracy.value:.1f} ({100 * row.accuracy.low:.1f}-" in text
            elif pair.interaction is not None:
                assert (
                    f"{pair.interaction.value:+.2f} ({pair.interaction.low:+.2f}..{pair.interaction.high:+.2f})" in text
                )
        rows = list(csv.DictReader(io.StringIO((folder / "results.csv").read_text(encoding="utf-8"))))
        kept = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))["result"]
        assert {row["cell"] for row in kept} <= {row["cell"] for row in rows}


def test_a_study_that_isnt_finished_is_refused(scripts: Any, tmp_path: Path) -> None:
    with pytest.raises(click.ClickException, match=r"no results\.csv"):
        scripts[1].read_rows(tmp_path)


def test_a_study_in_one_precision_has_no_interactions(scripts: Any, study: tuple[Path, Findings]) -> None:
    rows = [row for row in scripts[1].read_rows(study[0]) if not row["precision"].startswith("int")]
    with pytest.raises(click.ClickException, match="give its 'lmmprune study' --int8"):
        scripts[1].precisions(rows)
