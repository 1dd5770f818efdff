"""Read ``preprocessor.json``, whose form ``preprocess.py`` describes: nothing in it is believed unseen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from lmmprune.compiler.bundle.tile_rules import MOST_TILES
from lmmprune.compiler.runtime.tile_rule import RULES, TileRule
from lmmprune.limits import bounded, read_json, shortened

_RESAMPLE = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_STEPS = {"resize", "resample", "crop", "rescale", "mean", "std"}
_OPTIONAL = {"longest_edge", "square", "tiles", "grids"}
_GRIDS = {"rule", "grids", "side", "least", "most"}
_EDGE = 2**15  # pixels
_MOST_BYTES = 2**20


def read_steps(path: Path) -> dict[str, Any]:
    """Return the fields of a ``Preprocessor``.

    Raises:
        OSError: The file can't be read.
        ValueError: It isn't JSON, a step is missing or unknown, or of another form; one line that names it.
    """
    raw = read_json(path, finite=True, most=_MOST_BYTES)
    names = set(raw) if isinstance(raw, dict) else set()
    if not _STEPS <= names <= _STEPS | _OPTIONAL:
        differ = sorted(_STEPS - names or names - _STEPS - _OPTIONAL)
        what = "misses" if _STEPS - names else "has the unknown"
        raise ValueError(f"it {what} {shortened(differ[0])}: expected {', '.join(sorted(_STEPS))}")
    if raw["resample"] not in (None, *_RESAMPLE):
        raise ValueError(f"'resample' is {shortened(raw['resample'])}: expected {', '.join(_RESAMPLE)}")
    square, edge = raw.get("square"), raw.get("longest_edge")
    return {
        "resize": _size(raw["resize"]),
        "resample": _RESAMPLE[raw["resample"] or "bicubic"],
        "crop": _integers("crop", raw["crop"], 2),
        "rescale": raw["rescale"],
        "mean": _row("mean", raw["mean"]),
        "std": _row("std", raw["std"]),
        "longest_edge": None if edge is None else bounded(edge, "'longest_edge'", 1, _EDGE),
        "square": _integers("square", square, 3, low=0, high=255),
        "tiles": _integers("tiles", raw.get("tiles"), 2),
        "grids": _grids(raw.get("grids")),
    }


def _grids(raw: Any) -> TileRule | None:
    if raw is None:
        return None
    if not isinstance(raw, dict) or set(raw) != _GRIDS or raw["rule"] not in RULES:
        raise ValueError(f"'grids' is {shortened(raw)}: expected {', '.join(sorted(_GRIDS))}")
    rows = raw["grids"] if isinstance(raw["grids"], list) else []
    pairs = [_pair("grids", row, MOST_TILES) for row in rows]
    if not pairs:
        raise ValueError(f"'grids' has {shortened(raw['grids'])}: expected rows and columns of one grid or more")
    return TileRule(
        rule=raw["rule"],
        grids=tuple(pairs),
        side=_pair("side", raw["side"], _EDGE),
        **{name: bounded(raw[name], f"'{name}' of 'grids'", 1, MOST_TILES) for name in ("least", "most")},
    )


def _size(raw: Any) -> int | tuple[int, ...] | None:
    if raw is None:
        return None
    if isinstance(raw, dict) and set(raw) == {"shortest_edge"}:
        return bounded(raw["shortest_edge"], "'resize'", 1, _EDGE)
    if isinstance(raw, dict) and set(raw) == {"height", "width"}:
        return _integers("resize", [raw["height"], raw["width"]], 2)
    raise ValueError(f"'resize' is {shortened(raw)}: expected shortest_edge, or height and width")


def _integers(name: str, raw: Any, length: int, *, low: int = 1, high: int = _EDGE) -> tuple[int, ...] | None:
    row = _row(name, raw, length)
    return None if row is None else tuple(bounded(number, f"'{name}'", low, high) for number in row)


def _row(name: str, raw: Any, length: int = 3) -> tuple[Any, ...] | None:
    if raw is None:
        return None
    if not isinstance(raw, list) or len(raw) != length:
        raise ValueError(f"'{name}' is {shortened(raw)}: expected {length} numbers")
    return tuple(raw)


def _pair(name: str, raw: Any, high: int) -> tuple[int, int]:
    found = _integers(name, raw, 2, high=high)
    if found is None:
        raise ValueError(f"'{name}' is null: expected 2 numbers")
    return found[0], found[1]
