"""Killed whenever it changes the disk, a writer leaves the old or the new, and the same call works again."""

from __future__ import annotations

from pathlib import Path

import pytest
from kill_points import killed_at_every_change, killed_within_every_write
from killed_writers import WRITERS, Writer, copied, leftovers

from lmmprune.compiler.bundle import exchange


@pytest.mark.parametrize("before", ["", "old"])
@pytest.mark.parametrize("name", WRITERS)
def test_always_the_old_or_the_new(name: str, before: str, tmp_path: Path) -> None:
    _try_all(WRITERS[name], before, tmp_path)


def test_where_names_cant_be_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "_renameat2", lambda: None)
    _try_all(WRITERS["bundle"], "old", tmp_path)


@pytest.mark.parametrize("before", ["", "old"])
@pytest.mark.parametrize("name", WRITERS)
def test_half_a_file_is_nobodys(name: str, before: str, tmp_path: Path) -> None:
    writer = WRITERS[name]
    spare, folder = _prepared(writer, before, tmp_path)
    sizes = set()
    for number, size in killed_within_every_write(lambda: writer.write(folder, "new"), folder):
        sizes.add(size)
        what = f"killed within file {number}, of which {size} bytes were written"
        assert writer.read(folder) in {before, "new"}, what
        writer.write(folder, "new")
        assert writer.read(folder) == "new", what
        assert leftovers(folder) == [], what
        copied(spare, folder)
    assert 1 in sizes


def _prepared(writer: Writer, before: str, tmp_path: Path) -> tuple[Path, Path]:
    spare, folder = tmp_path / "spare", tmp_path / "work"
    spare.mkdir()
    if before:
        writer.write(spare, before)
    copied(spare, folder)
    return spare, folder


def _try_all(writer: Writer, before: str, tmp_path: Path) -> None:
    spare, folder = _prepared(writer, before, tmp_path)
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
