"""A folder that long work goes on in: a record says what the work is, and one process at a time does it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmmprune.compiler.bundle.atomic import made_parents
from lmmprune.compiler.bundle.exchange import put_in_place
from lmmprune.compiler.bundle.lock import remove_abandoned
from lmmprune.compiler.bundle.replace import check_directory
from lmmprune.compiler.bundle.workplace import UNFINISHED, begin, hold, partial_of, remove, sweep
from lmmprune.compiler.study.settings import differences
from lmmprune.compiler.study.write_file import write_text
from lmmprune.errors import InputError
from lmmprune.limits import read_json

_LOCK = ".lock"  # of earlier versions


@dataclass(frozen=True, kw_only=True)
class Record:
    """What lies in such a folder.

    Attributes:
        file: Name of the record.
        format: Of the record and of what it stands beside.
        kind: As ``replace`` calls the folder.
        command: That writes it.
        temporary: Patterns of what a killed ``write_file`` leaves.
    """

    file: str
    format: int
    kind: str
    command: str
    temporary: Sequence[str]


@contextlib.contextmanager
def open_record(
    path: Path, record: Record, identity: Mapping[str, str], *, force: bool = False, **more: Any
) -> Iterator[Path]:
    """Open a folder for writing, new or to go on with; only one process at a time may.

    Args:
        path: The folder.
        record: What it is to hold.
        identity: What decides all that is measured; it must be that of what is there.
        force: Begin anew: what was measured there is thrown away.
        more: What else was asked for, by name; it may differ, as with more methods or ratios.

    Yields:
        The folder, without links in its path.

    Raises:
        InputError: It holds something else or another such work, another process works in it, or it can't be written.
    """
    _goes_on(path, record, identity, force=force)  # refused before anything is made
    folder = path.resolve()
    with made_parents(folder), hold(folder):
        text = json.dumps({"format": record.format, "identity": dict(identity), **more}, indent=1) + "\n"
        if not _goes_on(path, record, identity, force=force):
            _begin_anew(folder, record.file, text)
        try:
            _sweep(folder, record.temporary)
            write_text(folder / record.file, text)
            yield folder
        finally:
            _sweep(folder, record.temporary)


def _goes_on(path: Path, record: Record, identity: Mapping[str, str], *, force: bool) -> bool:
    """Return whether there is something to go on with; refuse what isn't that, nor to be thrown away."""
    if force:
        check_directory(path, record.kind, force=True)
        return False
    earlier = _earlier(path, record)
    if earlier is not None and (differ := list(differences(earlier, identity))):
        raise InputError(
            f"'{path}' holds a {record.kind} of something else, which differs in {', '.join(differ)}: give another"
            " folder, or --force to begin anew"
        )
    return earlier is not None


def _earlier(path: Path, record: Record) -> dict[str, str] | None:
    """Return the identity of what is there, None for an empty or missing folder."""
    if path.exists() and not path.is_dir():
        raise InputError(f"'{path}' is a file: give a directory for the {record.kind}")
    if not path.is_dir() or not any(entry.name != _LOCK for entry in path.iterdir()):
        return None
    try:
        there = read_json(path / record.file)
        if there["format"] != record.format:
            raise InputError(
                f"'{path}' holds a {record.kind} of another lmmprune (format {there['format']}, expected"
                f" {record.format}), which it can't go on with: give another folder, or --force to begin anew"
            )
        return {str(name): str(value) for name, value in there["identity"].items()}
    except FileNotFoundError as error:
        raise InputError(
            f"'{path}' isn't empty and isn't a {record.kind}: give another folder, or one that 'lmmprune"
            f" {record.command}' wrote"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"'{path / record.file}' isn't the record of a {record.kind} ({error}): give another folder"
        ) from error


def _begin_anew(path: Path, file: str, text: str) -> None:
    """Put an empty folder with its record in the place of what is there, in one step."""
    partial = partial_of(path)
    begin(partial)
    write_text(partial / file, text)
    (partial / UNFINISHED).unlink()
    put_in_place(partial, path)
    if partial.exists():
        remove(partial)


def _sweep(path: Path, temporary: Sequence[str]) -> None:
    """Remove what a killed process left half-written."""
    remove_abandoned(file for pattern in temporary for file in path.glob(pattern))
    sweep(path / "bundles")
