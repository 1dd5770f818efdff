"""Killed before any of its changes of the disk, a writer leaves the old or the new, and the same call works again."""

from __future__ import annotations

from pathlib import Path

import pytest
from kill_points import killed_at_every_change
from killed_writers import WRITERS, Writer, copied, leftovers

from lmmprune.compiler.bundle import exchange


@pytest.mark.parametrize("before", ["", "old"])
@pytest.mark.parametrize("name", WRITERS)
def test_always_the_old_or_the_new(name: str, before: str, tmp_path: Path) -> None:
    _try_all(WRITERS[name], before, tmp_path)


def test_where_names_cant_be_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "_renameat2", lambda: None)
    _try_all(WRITERS["bundle"], "old", tmp_path)


def _try_all(writer: Writer, before: str, tmp_path: Path) -> None:
    spare, folder = tmp_path / "spare", tmp_path / "work"
    spare.mkdir()
    if before:
        writer.write(spare, before)
    copied(spare, folder)
    seen = set()
    for number in killed_at_every_change(lambda: writer.write(folder, "new"), folder):
        found = writer.read(folder)
        seen.add(found)
        assert found in {before, "new"}, f"killed at change {number}"
        if number >= 0:
            writer.write(folder, "new")
            assert writer.read(folder) == "new"
        assert leftovers(folder) == [], f"killed at change {number}"
        copied(spare, folder)
    assert seen == {before, "new"}
    assert number == -1
