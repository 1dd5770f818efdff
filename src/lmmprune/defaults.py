"""The methods that are taken where none is named."""

from __future__ import annotations

METHOD = "divprune"
"""Of an export: it is its paper's, needs nothing of a tower that some towers lack, and loses little at every ratio on
both models that it was measured on (docs/results/accuracy.md)."""

TOWER_METHOD = "scope"
"""Of a tower alone, which has no projector to cut behind; with CLS or without."""
