"""Prune visual tokens inside the graph of a large multimodal model, quantize it, and compile it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lmmprune.version import __version__

if TYPE_CHECKING:
    from lmmprune.api.model import Model, load

__all__ = ["Model", "__version__", "load"]

_HOMES = {"Model": "lmmprune.api.model", "load": "lmmprune.api.model"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lmmprune' has no attribute '{name}'")
    found = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = found
    return found
