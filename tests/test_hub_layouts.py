"""Checkpoints as they lie on the hub: every command that a family serves, answers as transformers', one-line refusals."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hub_layouts import LAYOUTS
from hub_layouts.matrix import Tried

SERVED = [layout.name for layout in LAYOUTS.values() if layout.served]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.mark.parametrize("name", SERVED)
def test_a_layout_is_served(name: str, work: Path) -> None:
    tried = Tried(LAYOUTS[name], work)
    for command in tried.layout.commands:
        cell = tried.try_command(command)
        expected = tried.layout.refused.get(command)
        assert cell.outcome == ("refused" if expected else "served"), f"{command}: {cell.line}"
        assert expected is None or re.search(expected, cell.line), f"{command}: {cell.line}"
