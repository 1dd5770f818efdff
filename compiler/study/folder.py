"""The folder of a study: who may write into it, what is finished in it; files are there whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmmprune.compiler.bundle.replace import STUDY as STUDY_FOLDER
from lmmprune.compiler.study.cell_result import CellResult
from lmmprune.compiler.study.grid import Cell
from lmmprune.compiler.study.record_folder import Record, open_record
from lmmprune.compiler.study.write_file import write_bytes
from lmmprune.errors import InputError

STUDY = "study.json"
BASE_ANSWERS = "answers.npz"
"""In the folder of the unpruned cell: what it chose from, where nobody knows right answers."""
_RECORD = Record(
    file=STUDY,
    format=2,
    kind=STUDY_FOLDER,
    command="study",
    temporary=(".*.tmp", "*/.*.tmp", "cells/*/.*.tmp"),
)


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
    with open_record(path, _RECORD, identity, force=force, request=dict(request)) as folder:
        yield Folder(path=folder)
