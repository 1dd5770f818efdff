"""Damage what is read: JSON, bytes and graphs, so that a seed says what was done."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import random
from pathlib import Path
from typing import Any

ODD: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 7, 2**31, -(2**63), 10**30, 10**39, 0.5, -2.5, 1e308, 5e-324),
    *("", "x", "0", "-1", "1e9", "x" * 300, "a\u0000b", "\u001b[31mred", "../../../X", "/etc/hostname", "٣", "a/"),
    *([], {}, [[]], [0], [None], {"x": 1}, [1, 2, 3], ["a", "b"]),
)
"""Values that are wrong in most places."""

TEXTS = (
    *("", "{", "[]", "null", "3", '"x"', '{"format": 4', "\u0000", "[" * 100_000, '{"a":' * 50_000),
    *('{"format": ' + "9" * 5000 + "}", '{"format": 1e999}', '{"format": NaN}', '{"a": "\\ud800"}', "\ufeff{}"),
)
"""Texts that are no record of ours."""


def damaged(record: Any, rng: random.Random) -> tuple[Any, str]:
    """Return a copy of JSON data with one place changed, and what was done."""
    record = copy.deepcopy(record)
    places = list(_places(record, ""))
    parent, key, where = rng.choice(places)
    kind = rng.choice(("replace", "replace", "replace", "remove", "add", "number", "swap"))
    old = parent[key]
    if kind == "number" and isinstance(old, int | float) and not isinstance(old, bool):
        parent[key] = old + rng.choice((-1, 1, 2, -old, 2**20, 0.5))
    elif kind == "remove":
        del parent[key]
    elif kind == "add" and isinstance(parent, dict):
        parent[rng.choice(("extra", "", "a\u0000b", "x" * 300))] = rng.choice(ODD)
    elif kind == "add":
        parent.insert(key, copy.deepcopy(old))
    elif kind == "swap":
        other, place, _ = rng.choice(places)
        parent[key] = copy.deepcopy(other[place]) if place in other or isinstance(other, list) else None
    else:
        kind, parent[key] = "replace", copy.deepcopy(rng.choice(ODD))
    return record, f"{kind} {where}"


def damaged_bytes(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Return other bytes, and what was done."""
    kind = rng.choice(("cut", "flip", "flip", "insert", "empty", "zero", "repeat"))
    at = rng.randrange(len(content)) if content else 0
    if kind == "cut":
        return content[:at], f"cut at {at}"
    if kind == "insert":
        return content[:at] + rng.randbytes(rng.choice((1, 9))) + content[at:], f"insert at {at}"
    if kind == "empty":
        return b"", "empty"
    if kind == "zero":
        return content[:at] + bytes(min(64, len(content) - at)) + content[at + 64 :], f"zero at {at}"
    if kind == "repeat":
        return content[:at] + content[max(0, at - 64) :], f"repeat at {at}"
    edited = bytearray(content)
    for _ in range(rng.choice((1, 1, 8))):
        edited[rng.randrange(len(edited))] ^= 1 << rng.randrange(8)
    return bytes(edited), f"flip near {at}"


def entry(content: bytes) -> dict[str, Any]:
    """Return what a manifest says of a file."""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def write_manifest(bundle: Path, raw: dict[str, Any], *, seal: bool) -> None:
    """Write a bundle's manifest, sealed anew or with the seal of before."""
    from lmmprune.compiler.bundle.seal import sealed

    if seal:
        # Numbers that JSON lacks are written all the same: a reader has to refuse them.
        with contextlib.suppress(ValueError):
            raw = sealed({name: value for name, value in raw.items() if name != "seal"})
    (bundle / "manifest.json").write_text(json.dumps(raw), encoding="utf-8")


def _places(value: Any, where: str) -> Any:
    rows = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in list(rows):
        yield value, key, f"{where}.{key}"
        yield from _places(one, f"{where}.{key}")
