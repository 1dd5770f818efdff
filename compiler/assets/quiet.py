"""Keep transformers' own log quiet where its remarks aren't about anything that the user did."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Log errors only, then as before."""
    from transformers.utils import logging as remarks

    before = remarks.get_verbosity()
    remarks.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        remarks.set_verbosity(before)
