"""A bounded part of the fault campaign, with fixed seeds: nothing damaged ends in a traceback or goes unnoticed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from fault_campaign import run_section


@pytest.mark.parametrize("section", ["manifests", "tampering", "command_lines", "method_files", "records", "served"])
def test_nothing_that_must_not_happens(section: str) -> None:
    rows = run_section(section, 0, seed=3)
    assert sum(row.tries for row in rows) >= 10
    assert not [example for row in rows for example in row.examples]
    assert not any(row.found for row in rows)
