"""Requests for an export in the short words that tests are parametrized with: ``ratio=0.5, int8=True``."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from lmmprune.compiler.export.request import Request
from lmmprune.compiler.export.values import Auto, Buckets, Int8, Keep, Ratio

_LONG = ("weights_only", "dynamic", "policy", "budget")
_INT8 = {f"int8_{field.name}" if field.name in _LONG else field.name: field.name for field in fields(Int8)}


def short_request(**short: Any) -> Request:
    """Return the request: ``ratio``, ``keep``, ``auto`` (with ``percentile``) or ``buckets``; ``int8`` and its options.

    What isn't one of these words is a field of ``Request``.
    """
    tokens = []
    if (ratio := short.pop("ratio", None)) is not None:
        tokens.append(Ratio(ratio))
    if (keep := short.pop("keep", None)) is not None:
        tokens.append(Keep(keep))
    if short.pop("auto", False):
        tokens.append(Auto(*([short.pop("percentile")] if "percentile" in short else [])))
    if (buckets := short.pop("buckets", None)) is not None:
        tokens.append(Buckets(buckets))
    assert len(tokens) <= 1, "one way to say how many stay"
    how = {name: short.pop(word) for word, name in _INT8.items() if word in short}
    int8 = Int8(**how) if short.pop("int8", False) or how else None
    return Request(tokens=tokens[0] if tokens else None, int8=int8, **short)
