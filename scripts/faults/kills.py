"""Writers that are killed before each of their changes of the disk and within each write, and two at one place."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from faults.tally import HALF, Row, Rows, while_time_lasts


def run(seconds: float, seed: int) -> list[Row]:
    """Kill every writer at every place, again and again, until the time is over; what it does isn't drawn."""
    from killed_writers import WRITERS

    rows = Rows("kills")
    jobs: list[Callable[[], None]] = [
        lambda name=name, before=before, how=how: _kill(rows, name, before, how)  # type: ignore[misc]  # mypy: defaults of a lambda
        for name in WRITERS
        for before in ("", "old")
        for how in _HOW
    ]
    jobs.append(lambda: _two(rows))
    for number in while_time_lasts(seconds, at_least=len(jobs)):
        jobs[number % len(jobs)]()
    return rows.list()


_EXCHANGED, _STEPS, _WITHIN = "names exchanged", "names changed one by one", "within a write"
_HOW = (_EXCHANGED, _STEPS, _WITHIN)


def _kill(rows: Rows, name: str, before: str, how: str) -> None:
    from kill_points import killed_at_every_change, killed_within_every_write
    from killed_writers import WRITERS, copied, leftovers

    from lmmprune.compiler.bundle import exchange as module
    from lmmprune.compiler.bundle.workplace import recover

    writer, kept = WRITERS[name], module._renameat2
    row = rows[f"{name}, {'replaced' if before else 'new'}, {how}"]
    killed: Callable[..., Iterator[object]] = killed_at_every_change
    if how == _WITHIN:
        killed = functools.partial(killed_within_every_write, sizes=tuple(2**power for power in range(14)))
    if how == _STEPS:
        module._renameat2 = lambda: None  # type: ignore[assignment]  # as on a system without the call
    root = Path(tempfile.mkdtemp())
    try:
        spare, folder = root / "spare", root / "work"
        spare.mkdir()
        if before:
            writer.write(spare, before)
        copied(spare, folder)
        for place in killed(lambda: writer.write(folder, "new"), folder):
            fault, words = None, ""
            try:
                if how == _STEPS:
                    recover(folder / "out")  # as the next command does
                if (found := writer.read(folder)) not in {before, "new"}:
                    fault, words = HALF, f"found {found!r}"
                writer.write(folder, "new")
                if writer.read(folder) != "new" or leftovers(folder):
                    fault, words = HALF, f"afterwards there is {leftovers(folder)}"
            except Exception as error:  # noqa: BLE001  # whatever reading or writing again stumbles over
                fault, words = HALF, f"{type(error).__name__}: {error}"
            row.count(fault, f"killed at {place}: {words}")
            copied(spare, folder)
    finally:
        module._renameat2 = kept
        shutil.rmtree(root, ignore_errors=True)


def _two(rows: Rows) -> None:
    """Let two processes write to one place: each writes all of it or is refused."""
    from killed_writers import WRITERS, leftovers

    from lmmprune.errors import InputError

    for name in ("bundle", "plan", "engine", "study"):
        folder, writer = Path(tempfile.mkdtemp()), WRITERS[name]
        writer.write(folder, "old")
        children = []
        for word in ("one", "new"):
            if (child := os.fork()) == 0:
                code = 0
                for _ in range(20):
                    try:
                        writer.write(folder, word)
                    except InputError:
                        continue
                    except BaseException as error:  # noqa: BLE001  # a child must end
                        os.write(2, f"{type(error).__name__}: {error}\n".encode())
                        code = 1
                os._exit(code)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        try:
            found = writer.read(folder)
            sound = codes == [0, 0] and found in {"one", "new", "old"} and not leftovers(folder)
            rows["two writers at once"].count(None if sound else HALF, f"{name}: {codes}, {found}, {leftovers(folder)}")
        except Exception as error:  # noqa: BLE001  # whatever reading stumbles over
            rows["two writers at once"].count(HALF, f"{name}: {error}")
        shutil.rmtree(folder, ignore_errors=True)
