"""The table of methods that others ship: its rows exist, cells are kept, and figures are those of the runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lmmprune.passes.methods import get_method

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import head_to_head

    return head_to_head


def test_rows_are_methods_with_options_that_they_take(script: Any) -> None:
    for row in script.ROWS:
        assert get_method(row.method, dict(row.options)).name == row.method
    assert len({row.name for row in script.ROWS}) == len(script.ROWS)


def test_cells_are_kept_for_the_same_questions_only(script: Any, tmp_path: Path) -> None:
    asked: list[str] = []

    def answer(name: str) -> dict[str, Any]:
        asked.append(name)
        return {"accuracy": 0.5}

    for about in ("one", "one", "other"):
        found = script.Cells(tmp_path, about).get("dart, form=layer-0.5", lambda about=about: answer(about))
        assert found == {"accuracy": 0.5}
    assert asked == ["one", "other"]


def test_tables_say_what_was_measured(script: Any) -> None:
    cell = {"accuracy": 0.7, "interval_95": [0.6, 0.8], "first_word": {"accuracy": 0.75}}
    large = {"sites": ["llm_input_2"], "prefill_flops": {"0.5": 4.567e12, "0.9": None}, "selection_ms": None}
    rows = [{"name": "m", "run_by": "x", "cells": {"0.5": cell, "0.9": {"refused": "can't"}}, "large": large}]
    accuracies = script.accuracy_table(cell, rows, [0.5, 0.9]).splitlines()
    assert accuracies[-1] == "| m | x | 70.0 (60.0-80.0) | 75.0 | - | - |"
    assert accuracies[2] == "| unpruned |  | 70.0 (60.0-80.0) | 75.0 |  |  |"
    assert {line.count("|") for line in accuracies} == {7}
    assert script.cost_table(rows, [0.5, 0.9]).splitlines()[-1] == "| m | llm_input_2 | 4.57 | - | - |"


def test_a_run(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    row = script.Row(method="cls", run_by="somebody")
    monkeypatch.setattr(script, "ROWS", (row,))
    words = ["-o", str(tmp_path / "found"), "--limit", "8", "--ratios", "0.5", "--cells", str(tmp_path / "cells")]
    said = CliRunner().invoke(script.main, words, catch_exceptions=False)
    assert said.exit_code == 0
    found = json.loads((tmp_path / "found.json").read_text())["result"]
    (shown,) = found["rows"]
    assert (shown["cells"]["0.5"]["tokens"], shown["cells"]["0.5"]["of"], shown["cells"]["0.5"]["total"]) == (
        72,
        144,
        8,
    )
    # 32 layers of 8 n d^2 + 4 n^2 d + 6 n d m with 288 + 60 tokens.
    n, d, m = 348, 4096, 11008
    assert shown["large"]["prefill_flops"]["0.5"] == 32 * (8 * n * d**2 + 4 * n**2 * d + 6 * n * d * m)
    assert shown["large"]["sites"] == ["vision_output"]
    assert {file.name for file in (tmp_path / "cells").iterdir()} == {"unpruned.json", "cls-0.5.json"}
    assert "| cls | somebody |" in (tmp_path / "found.md").read_text()
