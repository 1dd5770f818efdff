"""A bounded part of the fault campaign, with a fixed seed; its kills and surroundings have tests of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner


@pytest.fixture
def campaign(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "scripts")
    import fault_campaign

    return fault_campaign


def test_nothing_outside_of_a_bundle_is_read(campaign: Any) -> None:
    rows = campaign.run_section("containment", 0, 1)
    assert sum(row.tries for row in rows) >= 20
    assert [row.examples for row in rows if row.found] == []


def test_two_writers_at_once(campaign: Any) -> None:
    from faults import kills
    from faults.tally import Rows

    rows = Rows("kills")
    kills._two(rows)
    assert [(row.tries, row.found) for row in rows.list()] == [(4, {})]


def test_what_must_not_happen_is_an_exit_code(campaign: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from faults.tally import HALF, Rows

    def run_section(name: str, seconds: float, seed: int) -> list[Any]:
        rows = Rows(name)
        rows["a"].count(None)
        rows["a"].count(HALF if name == "kills" else None, "what\nwas done")
        return rows.list()

    monkeypatch.setattr(campaign, "run_section", run_section)
    done = CliRunner().invoke(campaign.main, ["--seconds", "1", "--seed", "5"])
    assert done.exit_code == 1
    assert "Seed 5." in done.stdout
    assert "| kills | a | 2 | 1 | 0 | 0 | 0 |" in done.stdout
    assert "* kills, a: half states: what was done" in done.stdout
    assert CliRunner().invoke(campaign.main, ["--only", "environments"]).exit_code == 0
