"""Run ``lmmprune`` in this process and say whether it ended as it must."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from faults.tally import SILENT, TRACEBACK

LONGEST = 400
"""Letters of an error's line at most."""


@dataclass(frozen=True, kw_only=True)
class Called:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


def call(*arguments: object) -> Called:
    """Run a command in this process."""
    from lmmprune.compiler.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _beside(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException as error:  # noqa: BLE001  # whatever comes through `main` is what is looked for
            code = 70
            err.write(f"Traceback: {type(error).__name__}: {error}")
    return Called(code=code, out=out.getvalue(), err=err.getvalue())


@contextlib.contextmanager
def _beside(err: io.StringIO) -> Iterator[None]:
    """Put what C code writes on stderr, past Python, in front of what Python does."""
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        file.seek(0)
        said = file.read().decode(errors="replace") + err.getvalue()
        err.seek(0)
        err.write(said)


def fault_of(called: Called, *, must_refuse: bool) -> str | None:
    """Return what a command did that it must not, None if it ended well.

    Args:
        called: The command.
        must_refuse: Whether exit 0 would be a silent success.
    """
    if "Traceback" in called.err or called.code not in (0, 2, 130):
        return TRACEBACK
    if called.code == 0:
        return SILENT if must_refuse else None
    if called.code == 2 and called.out and not called.err:
        return None  # `verify` prints which of its checks failed
    last = called.err.rstrip("\n").splitlines()[-1:] or [""]
    # A library's own log is coloured.
    plain = not any(ord(letter) < 32 and letter not in "\t\n" for letter in called.err)
    one_line = last[0].startswith("lmmprune: error: ") and len(last[0]) <= LONGEST and plain
    return None if one_line else TRACEBACK
