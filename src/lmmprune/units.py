"""Sizes and counts as people read them: bytes in binary units, costs in decimal ones."""

from __future__ import annotations

KIB, MIB, GIB = 2**10, 2**20, 2**30


def human_bytes(count: float) -> str:
    """Return bytes as text with a binary unit: ``1536`` is ``1.5 KiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def human_si(count: float, unit: str = "", *, digits: int = 2) -> str:
    """Return a count with a decimal prefix, as papers print costs: ``8.45e12`` is ``8.45 T``."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(count) >= size:
            return f"{count / size:.{digits}f} {prefix}{unit}"
    return f"{count:.0f} {unit}".rstrip()
