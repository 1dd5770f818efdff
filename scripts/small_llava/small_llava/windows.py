"""Square windows of scenes (or whole scenes) with the truth of every patch."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmmprune.models.tiny_llava.scenes import COLOUR_NAMES
from small_llava.glyphs import WORDS
from small_llava.pools import Pool
from small_llava.scenes import GRID, KINDS, MAX_OBJECTS, PATCH_SIZE, SHAPES

CELLS = 7
"""Rows and columns of the grid in which places are named: a cell is two patches wide."""

IGNORE = -100

PRESENT = {
    "pair": len(KINDS) * len(COLOUR_NAMES),
    "digit": 10,
    "word": len(WORDS),
    "shape": len(SHAPES),
}
"""What the CLS token tells to be there, and how many values of each there are."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Truth for a batch of windows; N patches; IGNORE where a thing can't be known.

    Attributes:
        places: raster index of each patch `[B, N]`.
        owned: whether an object owns the patch `[B, N]`.
        anchor: whether the patch holds the centre of its object, float `[B, N]`.
        centre: centre of the owner in 0..1 `[B, N, 2]`.
        whole: whether the owner lies wholly in the window `[B, N]`.
        classes: class of each patch by name of the read-out, int64 `[B, N]`.
        present: what is there, float `[B, sum of PRESENT]`; -1 = cut.
        counts: number of objects of each kind `[B, 4]`, IGNORE = some are cut.
    """

    places: Tensor
    owned: Tensor
    anchor: Tensor
    centre: Tensor
    whole: Tensor
    classes: dict[str, Tensor]
    present: Tensor
    counts: Tensor


def _classes(mine: NDArray[np.int64], whole: NDArray[np.bool_]) -> dict[str, NDArray[np.int64]]:
    """Return the classes of patches from the truth of their owners `[B, N, 7]`."""
    kind, content, colour, x, y = (mine[..., column] for column in range(5))

    def of(name: str, value: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.where(whole & (kind == KINDS.index(name)), value, IGNORE)  # type: ignore[arg-type]

    long = content >= 100
    pixels = 2 * GRID * PATCH_SIZE
    return {
        "kind": np.where(kind >= 0, kind, IGNORE),
        "colour": np.where(kind >= 0, colour, IGNORE),
        "column": np.where(whole, x * CELLS // pixels, IGNORE),
        "row": np.where(whole, y * CELLS // pixels, IGNORE),
        "digit": of("digit", content),
        "shape": of("shape", content),
        "word": of("word", content),
        "first": of("number", np.where(long, content // 100, content // 10)),
        "second": of("number", np.where(long, content // 10 % 10, content % 10)),
        "third": of("number", np.where(long, content % 10, 10)),
    }


def _present(truth: NDArray[np.int64], chosen: NDArray[np.bool_], state: float, out: NDArray[np.float32]) -> None:
    rows, slots = np.nonzero(chosen)
    kind, content, colour = (truth[rows, slots, column] for column in range(3))
    out[rows, kind * len(COLOUR_NAMES) + colour] = state
    start = PRESENT["pair"]
    for name in ("digit", "word", "shape"):
        mine = kind == KINDS.index(name)  # type: ignore[arg-type]
        out[rows[mine], start + content[mine]] = state
        start += PRESENT[name]


def draw_windows(
    pool: Pool, rng: np.random.Generator, batch: int, side: int, rows: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.uint8], Targets]:
    """Cut windows of `side` patches around random objects (or whole scenes) with their truth."""
    rows = rng.integers(0, len(pool), batch) if rows is None else rows
    truth, owners = pool.truth[rows].astype(np.int64), pool.owners[rows].astype(np.int64)
    each = np.arange(batch)
    slots = (rng.random(batch) * (truth[:, :, 0] >= 0).sum(1)).astype(np.int64)
    middle, size = truth[each, slots, 3:5] / 2, truth[each, slots, 5:7]
    low = np.ceil((middle + size / 2) / PATCH_SIZE).astype(np.int64) - side
    high = np.maximum(np.floor((middle - size / 2) / PATCH_SIZE).astype(np.int64), low)
    corner = np.clip(rng.integers(low, high + 1), 0, GRID - side)  # x, y of the first patch
    x, y = (corner[:, axis, None] + np.arange(side) for axis in (0, 1))
    pixel = np.arange(side * PATCH_SIZE)
    if side == GRID:
        pixels = pool.pixels[rows]
    else:
        pixels = np.stack(
            [
                pool.pixels[row, top * PATCH_SIZE :][: len(pixel), left * PATCH_SIZE :][:, : len(pixel)]
                for row, (left, top) in zip(rows, corner, strict=True)
            ]
        )
    take = (each[:, None, None], y[:, :, None], x[:, None, :])
    owner, glyph = (array[take].reshape(batch, -1) for array in (owners, pool.glyphs[rows].astype(np.int64)))
    places = (y[:, :, None] * GRID + x[:, None, :]).reshape(batch, -1)
    slot_range = np.arange(MAX_OBJECTS)
    inside = (owner[:, :, None] == slot_range).sum(1)
    total = (owners.reshape(batch, -1, 1) == slot_range).sum(1)
    exists = truth[:, :, 0] >= 0
    complete = exists & (inside == total) & (total > 0)
    mine = truth[each[:, None], np.maximum(owner, 0)]
    mine[owner < 0] = -1
    whole = (owner >= 0) & complete[each[:, None], np.maximum(owner, 0)]
    classes = _classes(mine, whole)
    classes["glyph"] = np.where((owner >= 0) & (glyph >= 0), glyph, IGNORE)
    present = np.zeros((batch, sum(PRESENT.values())), np.float32)
    cut = exists & (inside > 0) & ~complete
    _present(truth, cut, -1.0, present)
    _present(truth, complete, 1.0, present)
    counts = np.stack([(complete & (truth[:, :, 0] == kind)).sum(1) for kind in range(len(KINDS))], 1)
    counts[cut.any(1)] = IGNORE
    anchor = (mine[..., 4] // (2 * PATCH_SIZE)) * GRID + mine[..., 3] // (2 * PATCH_SIZE)
    return pixels, Targets(
        places=torch.from_numpy(places),
        owned=torch.from_numpy(owner >= 0),
        anchor=torch.from_numpy((owner >= 0) & (anchor == places)).float(),
        centre=torch.from_numpy(mine[..., 3:5] / (2 * GRID * PATCH_SIZE)).float(),
        whole=torch.from_numpy(whole),
        classes={name: torch.from_numpy(value) for name, value in classes.items()},
        present=torch.from_numpy(present),
        counts=torch.from_numpy(counts),
    )
