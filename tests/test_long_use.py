"""A process that answers for long takes no more memory than one that has answered for a while."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import runtime_fixtures as fx
from click.testing import CliRunner

import lmmprune


@pytest.fixture
def long_use(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "scripts")
    import long_use

    return long_use


def test_memory_stays_flat(long_use: Any, tmp_path: Path) -> None:
    fx.make_bundle(tmp_path / "out", keep=4)
    with lmmprune.load(tmp_path / "out") as model:
        (_, begun, early), (_, ended, late) = long_use.use(model, 600, {200, 600})
    # An object per answer would be 400 more.
    assert late - early < 100
    assert ended < begun * 1.02


def test_what_is_kept_shows(long_use: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fx.make_bundle(tmp_path / "out", keep=4)
    kept = []
    answer = lmmprune.Model.answer
    monkeypatch.setattr(
        lmmprune.Model,
        "answer",
        lambda *given, **options: kept.append(bytearray(2**19)) or answer(*given, **options),
    )
    done = CliRunner().invoke(long_use.main, [str(tmp_path / "out"), "--answers", "100", "--every", "50"])
    assert done.exit_code == 1
    assert [line.split(",")[0] for line in done.stdout.splitlines()[1:4]] == ["10", "50", "100"]
