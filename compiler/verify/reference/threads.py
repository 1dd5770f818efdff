"""Tiny matrices are fastest, and always summed in the same order, on one thread without gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_TINY = 1024  # channels of a decoder; from here on more threads pay


@contextmanager
def one_thread(model: Any = None) -> Iterator[None]:
    """Compute without gradients and on one thread, then restore both; a model that isn't tiny keeps its threads."""
    before = torch.get_num_threads()
    if model is None or model.config.text_config.hidden_size < _TINY:
        torch.set_num_threads(1)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(before)
