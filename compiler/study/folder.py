"""The folder of a study: who may write into it, what is finished in it; files are there whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmmprune.compiler.bundle.atomic import made_parents, replace_file
from lmmprune.compiler.bundle.exchange import put_in_place
from lmmprune.compiler.bundle.lock import remove_abandoned
from lmmprune.compiler.bundle.replace import STUDY as STUDY_FOLDER
from lmmprune.compiler.bundle.replace import check_directory
from lmmprune.compiler.bundle.workplace import UNFINISHED, begin, hold, partial_of, remove, sweep
from lmmprune.compiler.study.cell_result import CellResult
from lmmprune.compiler.study.grid import Cell
from lmmprune.compiler.study.settings import differences
from lmmprune.errors import InputError
from lmmprune.limits import read_json

STUDY = "study.json"
_FORMAT = 2
BASE_ANSWERS = "answers.npz"
"""In the folder of the unpruned cell: what it chose from, where nobody knows right answers."""
_LOCK = ".lock"  # of earlier versions
# What write_bytes leaves when it is killed.
_TEMPORARY = (".*.tmp", "*/.*.tmp", "cells/*/.*.tmp")


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A study on disk: ``study.json``, ``cells/<name>/result.json``, ``bundles/<name>/``, ``timing/``, the report."""

    path: Path

    def cell(self, cell: Cell) -> Path:
        """Return the folder of a cell's results."""
        return self.path / "cells" / cell.name

    def bundle(self, cell: Cell) -> Path:
        """Return where a cell's bundle is, or will be."""
        return self.path / "bundles" / cell.name

    def code(self, cell: Cell) -> Path | None:
        """Return the study's own copy of the file that defines a cell's method: nobody edits it, and all nodes have it.

        None: the method is installed.
        """
        if cell.code is None:
            return None
        return next((self.path / "methods" / cell.code).iterdir())

    def keep_code(self, file: Path, code: str) -> None:
        """Copy a file that defines methods into the study.

        Args:
            file: The user's.
            code: Digest of its content, from when it was read.

        Raises:
            InputError: It was edited meanwhile.
        """
        data = file.read_bytes()
        if hashlib.sha256(data).hexdigest() != code:
            raise InputError(f"--method-file {file} was edited while the study began: start again")
        copy = self.path / "methods" / code / file.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(copy, data)

    def result(self, cell: Cell) -> CellResult | None:
        """Return what was measured of a cell, None if it isn't finished."""
        file = self.cell(cell) / "result.json"
        if not file.is_file():
            return None
        return CellResult.from_json(file.read_text(encoding="utf-8"), str(file))


@contextlib.contextmanager
def open_study(
    path: Path, identity: Mapping[str, str], request: Mapping[str, Any], *, force: bool = False
) -> Iterator[Folder]:
    """Open the folder of a study for writing, new or to go on with; only one process at a time may.

    Args:
        path: The folder.
        identity: What decides all cells; it must be that of the study there.
        request: What else was asked for, for the record; it may differ, as with more methods or ratios.
        force: Begin anew: what a study there measured is thrown away.

    Raises:
        InputError: It holds something else or another study, another process works in it, or it can't be written.
    """
    folder = Folder(path=path.resolve())
    _goes_on(path, identity, force=force)  # refused before anything is made
    with made_parents(folder.path), hold(folder.path):
        record = {"format": _FORMAT, "identity": dict(identity), "request": dict(request)}
        text = json.dumps(record, indent=1) + "\n"
        if not _goes_on(path, identity, force=force):
            _begin_anew(folder.path, text)
        try:
            _sweep(folder.path)
            write_text(folder.path / STUDY, text)
            yield folder
        finally:
            _sweep(folder.path)


def write_text(file: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all, whenever the process ends."""
    write_bytes(file, text.encode())


def write_bytes(file: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, whenever the process ends.

    Raises:
        InputError: The disk is full, or not to be written.
    """
    try:
        with replace_file(file) as stream:
            stream.write(data)
    except OSError as error:
        raise InputError(f"can't write '{file}' ({error.strerror}): free some space, or give another folder") from error


def _goes_on(path: Path, identity: Mapping[str, str], *, force: bool) -> bool:
    """Return whether a study is there to go on with; refuse what isn't that, nor to be thrown away."""
    if force:
        check_directory(path, STUDY_FOLDER, force=True)
        return False
    earlier = _earlier(path)
    if earlier is not None and (differ := list(differences(earlier, identity))):
        raise InputError(
            f"'{path}' holds a study of something else, which differs in {', '.join(differ)}: give another folder, "
            "or --force to begin anew"
        )
    return earlier is not None


def _earlier(path: Path) -> dict[str, str] | None:
    """Return the identity of the study there, None for an empty or missing folder."""
    if path.exists() and not path.is_dir():
        raise InputError(f"'{path}' is a file: give a directory for the study")
    if not path.is_dir() or not any(entry.name != _LOCK for entry in path.iterdir()):
        return None
    try:
        record = read_json(path / STUDY)
        if record["format"] != _FORMAT:
            raise InputError(
                f"'{path}' holds a study of another lmmprune (format {record['format']}, expected {_FORMAT}),"
                " which it can't go on with: give another folder, or --force to begin anew"
            )
        return {str(name): str(value) for name, value in record["identity"].items()}
    except FileNotFoundError as error:
        raise InputError(
            f"'{path}' isn't empty and isn't a study: give another folder, or one that 'lmmprune study' wrote"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"'{path / STUDY}' isn't the record of a study ({error}): give another folder") from error


def _begin_anew(path: Path, text: str) -> None:
    """Put an empty study in the place of what is there, in one step."""
    partial = partial_of(path)
    begin(partial)
    write_text(partial / STUDY, text)
    (partial / UNFINISHED).unlink()
    put_in_place(partial, path)
    if partial.exists():
        remove(partial)


def _sweep(path: Path) -> None:
    """Remove what a killed process left half-written."""
    remove_abandoned(file for pattern in _TEMPORARY for file in path.glob(pattern))
    sweep(path / "bundles")
