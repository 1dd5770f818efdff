"""What a calibration layer by layer has done so far, on disk: it goes on behind the last finished layer."""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lmmprune.compiler.bundle.atomic import replace_file
from lmmprune.compiler.quantize.smooth import Smoothed
from lmmprune.passes.int8.int8 import Range
from lmmprune.stored import Array

FORMAT = 1
_DAMAGE = (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile)

Values = dict[str, Array]


@dataclass(kw_only=True)
class LayerState:
    """Where a calibration is.

    Attributes:
        finished: Segments that are done.
        values: By sample and step, what the next segments read.
        ranges: Of every activation of the finished segments.
        smoothed: The same for smoothing.
    """

    finished: int = 0
    values: list[list[Values]] = field(default_factory=list)
    ranges: dict[str, Range] = field(default_factory=dict)
    smoothed: dict[str, Smoothed] = field(default_factory=dict)


def save(file: Path, state: LayerState) -> None:
    """Write a state; the one before stays until all of it is there. A disk that doesn't take it is no failure."""
    arrays: dict[str, Array] = {}
    for index, steps in enumerate(state.values):
        for step, values in enumerate(steps):
            arrays |= {f"{index}/{step}/{name}": array for name, array in values.items()}
    arrays |= {f"factors/{name}": row.factors for name, row in state.smoothed.items() if row.factors is not None}
    text = {
        "format": FORMAT,
        "finished": state.finished,
        "steps": [len(steps) for steps in state.values],
        "ranges": state.ranges,
        "smoothed": {name: [r.alpha, r.before, r.after, r.outlier] for name, r in state.smoothed.items()},
    }
    # Positional names can't clash with an argument of savez.
    numbered: dict[str, Any] = {f"a{number}": array for number, array in enumerate(arrays.values())}
    with contextlib.suppress(OSError), replace_file(file) as stream:
        np.savez(stream, **numbered, names=np.array(list(arrays)), text=np.array(json.dumps(text)))


def load(file: Path) -> LayerState | None:
    """Return what ``save`` wrote; None where there is nothing, or something damaged or of another format."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            text = json.loads(str(stored["text"]))
            if text["format"] != FORMAT:
                return None
            arrays = {str(name): stored[f"a{number}"] for number, name in enumerate(stored["names"])}
    except _DAMAGE:
        return None
    values: list[list[Values]] = [[{} for _ in range(count)] for count in text["steps"]]
    for name, array in arrays.items():
        index, _, rest = name.partition("/")
        if index != "factors":
            step, _, value = rest.partition("/")
            values[int(index)][int(step)][value] = array
    return LayerState(
        finished=text["finished"],
        values=values,
        ranges={name: (low, high) for name, (low, high) in text["ranges"].items()},
        smoothed=_smoothed(text["smoothed"], arrays),
    )


def _smoothed(rows: Mapping[str, list[float]], arrays: Mapping[str, Array]) -> dict[str, Smoothed]:
    return {
        name: Smoothed(alpha=row[0], factors=arrays.get(f"factors/{name}"), before=row[1], after=row[2], outlier=row[3])
        for name, row in rows.items()
    }
