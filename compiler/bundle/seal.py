"""A digest over a record's content: what somebody edits after us is noticed, whatever it is.

It guards against mistakes and half-edited files. Whoever can edit a record can also seal it again: a seal is no
signature.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

SEAL = "seal"
"""Key of the digest."""

_UNSEALED = ContextVar("unsealed", default=False)


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record of plain data with its seal."""
    # As it will be read: tuples as lists, keys as texts.
    plain = json.loads(json.dumps(record, allow_nan=False))
    return {**plain, SEAL: _digest(plain)}


def holds(record: Mapping[str, Any]) -> bool:
    """Return whether a record that was read, seal included, is as it was sealed; or whether that doesn't matter."""
    rest = {name: value for name, value in record.items() if name != SEAL}
    return allowed() or record.get(SEAL) == _digest(rest)


def allowed() -> bool:
    """Return whether records without a whole seal may be read: what ``--unsealed`` says."""
    return _UNSEALED.get()


@contextlib.contextmanager
def unsealed(allow: bool = True) -> Iterator[None]:
    """Let records without a whole seal be read for as long as the block lasts.

    Args:
        allow: False leaves things as they are.
    """
    token = _UNSEALED.set(allow or _UNSEALED.get())
    try:
        yield
    finally:
        _UNSEALED.reset(token)


def may_be_unsealed(function: Callable[P, T]) -> Callable[P, T]:
    """Let a function's keyword argument ``unsealed`` say whether it reads records without a whole seal."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with unsealed(bool(kwargs.get("unsealed"))):
            return function(*args, **kwargs)

    return call


def _digest(record: Mapping[str, Any]) -> str:
    """Return the SHA-256 of plain data, whatever the order of its keys and the blanks of its file."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
