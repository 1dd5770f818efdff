"""Where something is made before it gets its name: ``.NAME.partial`` beside it, for one process at a time.

``.NAME.lock`` beside it says that somebody is at work. A process that was killed leaves both; the next one clears them
away, or goes on with what is in there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from lmmprune.compiler.bundle.atomic import made_parents, terminable
from lmmprune.compiler.bundle.exchange import put_in_place, replaced, settle
from lmmprune.compiler.bundle.lock import only_writer
from lmmprune.errors import InputError, LmmpruneError

UNFINISHED = ".unfinished"
"""A file in every folder that isn't whole yet, whatever it is called."""

Keep = Callable[[Path], Collection[Path]]


@contextlib.contextmanager
def replace_directory(destination: Path, check: Callable[[], None], *, keep: Keep | None = None) -> Iterator[Path]:
    """Open a sibling of ``destination`` for writing, which gets its name at the end, in one step.

    Before: ``out/`` absent, empty or old
    After:  ``out/`` is new; or, after an exception or when the process is killed, as it was

    Args:
        destination: Absolute path of the directory; missing parents are made.
        check: Refuses what mustn't be replaced; called again when nobody else can write there.
        keep: As in ``workplace``.

    Raises:
        InputError: As ``workplace``.
    """
    with workplace(destination, check, keep=keep) as partial:
        yield partial
        (partial / UNFINISHED).unlink()
        put_in_place(partial, destination)


@contextlib.contextmanager
def workplace(destination: Path, check: Callable[[], None], *, keep: Keep | None = None) -> Iterator[Path]:
    """Give an empty directory beside ``destination``, which goes away at the end with what is left in it.

    Args:
        destination: Absolute path of what shall be written; missing parents are made, and go away after an exception.
        check: Refuses what mustn't be replaced; called again when nobody else can write there.
        keep: Names the entries of a directory that an earlier process left which stay. With it the directory stays
            after an interruption, and after a mistake of ours: in C code, Ctrl-C may look like one.

    Raises:
        InputError: The parents can't be made or written, the disk is full, another process is writing, or something
            is in the way.
    """
    check()
    partial = partial_of(destination)
    with made_parents(destination), terminable(), hold(destination):
        check()
        begin(partial, keep)
        try:
            yield partial
        except BaseException as error:
            if keep is None or isinstance(error, LmmpruneError | OSError):
                shutil.rmtree(partial, ignore_errors=True)
            raise
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def hold(destination: Path) -> Iterator[None]:
    """Be the only one who writes a path, for as long as the block runs.

    Raises:
        InputError: Another process is writing.
        OSError: Its directory can't be written.
    """
    busy = f"another process is writing '{destination}': wait for it, or give another place"
    with only_writer(destination.with_name(f".{destination.name}.lock"), busy):
        settle(destination)
        yield


def begin(partial: Path, keep: Keep | None = None) -> None:
    """Make the directory, or clear one that was left; it says that it isn't finished.

    Raises:
        InputError: Something else is there.
    """
    if os.path.lexists(partial):
        status = os.lstat(partial)
        if not stat.S_ISDIR(status.st_mode) or not _is_own(status):
            raise InputError(
                f"'{partial}' isn't a directory of yours, where lmmprune leaves what it couldn't finish: remove it"
            )
        kept = {*(keep(partial) if keep else ())}
        for entry in [entry for entry in partial.iterdir() if entry not in kept]:
            remove(entry)
    partial.mkdir(exist_ok=True)
    (partial / UNFINISHED).touch()


def remove(path: Path) -> None:
    """Remove a file, a link, or a directory with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def sweep(folder: Path) -> None:
    """Remove what killed processes left in a folder; what a living one works on stays."""
    for partial in folder.glob(".*.partial"):
        destination = partial.with_name(partial.name[1 : -len(".partial")])
        with contextlib.suppress(OSError, InputError), hold(destination):
            remove(partial)


def recover(destination: Path) -> None:
    """Bring back what was to be replaced by a process that was killed, where that took more than one step."""
    if os.path.lexists(replaced(destination)):
        with contextlib.suppress(OSError, InputError), hold(destination):
            pass


def partial_of(destination: Path) -> Path:
    """Return where something is made."""
    return destination.with_name(f".{destination.name}.partial")


def is_unfinished(path: Path) -> bool:
    """Return whether a directory is one in the making, by its name or by what is in it."""
    name = path.resolve().name
    return (name.startswith(".") and name.endswith(".partial")) or os.path.lexists(path / UNFINISHED)


def _is_own(status: os.stat_result) -> bool:
    return not hasattr(os, "geteuid") or status.st_uid == os.geteuid()
