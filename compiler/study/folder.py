"""The folder of a study: who may write into it, what is finished in it; files are there whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmmprune.compiler.bundle.atomic import only_writer, replace_file
from lmmprune.compiler.bundle.replace import STUDY as STUDY_FOLDER
from lmmprune.compiler.bundle.replace import check_directory
from lmmprune.compiler.study.cell_result import CellResult
from lmmprune.compiler.study.grid import Cell
from lmmprune.compiler.study.settings import differences
from lmmprune.errors import InputError

STUDY = "study.json"
_FORMAT = 2
BASE_ANSWERS = "answers.npz"
"""In the folder of the unpruned cell: what it chose from, where nobody knows right answers."""
# What write_bundle and write_bytes leave when they are killed.
_TEMPORARY = (".*.tmp", "*/.*.tmp", "*/.*.old", "*/.*.partial", "cells/*/.*.tmp")


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
    if force:
        check_directory(path, STUDY_FOLDER, force=True)
    earlier = None if force else _earlier(folder.path)
    if earlier is not None and (differ := list(differences(earlier, identity))):
        raise InputError(
            f"'{path}' holds a study of something else, which differs in {', '.join(differ)}: give another folder, "
            "or --force to begin anew"
        )
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"can't write into '{path}' ({error.strerror}): give another folder") from error
    with only_writer(folder.path / ".lock", f"another process works in '{path}': wait for it, or give another folder"):
        _sweep(folder.path)
        if force:
            _empty(folder.path)
        record = {"format": _FORMAT, "identity": dict(identity), "request": dict(request)}
        write_text(folder.path / STUDY, json.dumps(record, indent=1) + "\n")
        try:
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


def _earlier(path: Path) -> dict[str, str] | None:
    """Return the identity of the study there, None for an empty or missing folder."""
    if path.exists() and not path.is_dir():
        raise InputError(f"'{path}' is a file: give a directory for the study")
    if not path.is_dir() or not any(entry.name != ".lock" for entry in path.iterdir()):
        return None
    try:
        record = json.loads((path / STUDY).read_text(encoding="utf-8"))
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
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"'{path / STUDY}' isn't the record of a study ({error}): give another folder") from error


def _empty(path: Path) -> None:
    """Remove an earlier study, all but the lock that this process holds."""
    for entry in path.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != ".lock":
            entry.unlink()


def _sweep(path: Path) -> None:
    """Remove what a killed process left half-written; nobody else writes here while the lock is held."""
    for temporary in [file for pattern in _TEMPORARY for file in path.glob(pattern)]:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
