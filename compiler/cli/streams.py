"""Standard streams that are there and take every letter, so that a command fails at its work and not at saying so."""

from __future__ import annotations

import contextlib
import errno
import os
import sys

from lmmprune.errors import InputError

_PIPE_CLOSED = 141  # 128 + SIGPIPE, as a shell has it


def mend_streams() -> None:
    """Open what was closed (``>&-``), and let letters that an encoding doesn't have be written as escapes.

    A file that a command opens would else get the number of the closed stream, and whatever prints would print into it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # for as long as the process lives
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # same
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure") and (stream.encoding or "").lower().replace("-", "") != "utf8":
            stream.reconfigure(errors="backslashreplace")


def flush() -> int:
    """Write what is still to be printed; return the exit code of a reader who has gone (``| head``), else 0.

    Raises:
        InputError: It can't be written.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        drop()
        if error.errno == errno.EPIPE:
            return _PIPE_CLOSED
        raise InputError(f"stdout can't be written ({error.strerror}): the output is cut off") from error
    return 0


def drop() -> None:
    """Let nothing more be printed on stdout: it can't be written, and the interpreter would try once more."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # for as long as the process lives


def check_words(words: list[str]) -> None:
    """Refuse arguments whose bytes aren't letters: no library behind us could open such a path.

    Raises:
        InputError: One holds what this locale, or UTF-8, doesn't have.
    """
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError as error:
            shown = ascii(word)[:100]
            encoding = sys.getfilesystemencoding()
            if encoding.lower().replace("-", "") != "utf8":
                raise InputError(
                    f"{shown} has letters that this locale ({encoding}) can't name: set LC_ALL=C.UTF-8 or PYTHONUTF8=1"
                ) from error
            what = "holds half a character, which isn't valid UTF-8: rename what it names"
            raise InputError(f"{shown} {what}") from error
