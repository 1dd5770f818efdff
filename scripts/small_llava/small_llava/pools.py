"""Pools of pre-rendered scenes, as arrays on disk: no scene is drawn while a model trains."""

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmmprune.models.tiny_llava.digits import Split
from lmmprune.models.tiny_llava.scenes import COLOUR_NAMES
from small_llava.glyphs import WORDS
from small_llava.scenes import KINDS, MAX_OBJECTS, SHAPES, Scene, Thing, scenes

_CHUNK = 500
_NAMES = ("pixels", "truth", "owners", "glyphs")


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Scenes as arrays; S scenes, D = MAX_OBJECTS slots of objects, G = GRID, -1 in unused slots.

    Attributes:
        pixels: uint8 `[S, IMAGE_SIZE, IMAGE_SIZE, 3]`.
        truth: int16 `[S, D, 7]`: kind, content, colour, 2 x, 2 y, width, height.
        owners: int8 `[S, G, G]`, slot of the object that owns the patch, -1 = none.
        glyphs: int8 `[S, G, G]`, character in the patch, -1 = none.
    """

    pixels: NDArray[np.uint8]
    truth: NDArray[np.int16]
    owners: NDArray[np.int8]
    glyphs: NDArray[np.int8]

    def __len__(self) -> int:
        """Return the number of scenes."""
        return len(self.pixels)

    def things(self, row: int) -> list[Thing]:
        """Return the objects of a scene."""
        return [_thing(slot) for slot in self.truth[row].tolist() if slot[0] >= 0]


def encode(thing: Thing) -> tuple[int, ...]:
    """Write an object as a row of `Pool.truth`."""
    names = {"word": WORDS, "shape": SHAPES}.get(thing.kind)
    content = names.index(thing.content) if names else int(thing.content)
    place = (round(2 * thing.x), round(2 * thing.y), thing.width, thing.height)
    return (KINDS.index(thing.kind), content, COLOUR_NAMES.index(thing.colour), *place)


def _thing(row: list[int]) -> Thing:
    kind, content, colour, x, y, width, height = row
    names = {"word": WORDS, "shape": SHAPES}.get(KINDS[kind])
    return Thing(
        kind=KINDS[kind],
        content=names[content] if names else str(content),
        colour=COLOUR_NAMES[colour],
        x=x / 2,
        y=y / 2,
        width=width,
        height=height,
    )


def as_arrays(drawn: list[Scene]) -> tuple[NDArray[np.generic], ...]:
    """Stack scenes into the arrays of a pool."""
    truth = np.full((len(drawn), MAX_OBJECTS, 7), -1, np.int16)
    for row, scene in enumerate(drawn):
        for slot, thing in enumerate(scene.things):
            truth[row, slot] = encode(thing)
    pixels, owners, glyphs = (np.stack([getattr(scene, name) for scene in drawn]) for name in ("pixels", *_NAMES[2:]))
    return pixels, truth, owners, glyphs


def _chunk(first: int, seed: int, split: Split) -> tuple[NDArray[np.generic], ...]:
    return as_arrays(list(scenes(split, _CHUNK, seed=seed, first=first)))


def _chunks(count: int, *, seed: int, split: Split, workers: int) -> Iterator[tuple[NDArray[np.generic], ...]]:
    # "spawn": forking after PyTorch has started its threads can deadlock.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
        yield from executor.map(partial(_chunk, seed=seed, split=split), range(0, count, _CHUNK))


def open_pool(directory: Path, count: int, *, seed: int, split: Split = "train", workers: int = 2) -> Pool:
    """Open a pool of about `count` scenes (a multiple of 500); render it first if it isn't there."""
    count = max(count // _CHUNK, 1) * _CHUNK
    folder = directory / f"{split}-{seed}-{count}"
    if not folder.exists():
        fresh = folder.with_suffix(".tmp")
        fresh.mkdir(parents=True, exist_ok=True)
        files: list[np.memmap] = []
        for index, part in enumerate(_chunks(count, seed=seed, split=split, workers=workers)):
            if not files:
                files = [
                    np.lib.format.open_memmap(
                        fresh / f"{name}.npy", "w+", dtype=array.dtype, shape=(count, *array.shape[1:])
                    )
                    for name, array in zip(_NAMES, part, strict=True)
                ]
            for file, array in zip(files, part, strict=True):
                file[index * _CHUNK : (index + 1) * _CHUNK] = array
        for file in files:
            file.flush()
        os.replace(fresh, folder)
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _NAMES}
    return Pool(**{**arrays, **{name: np.asarray(arrays[name]) for name in _NAMES[1:]}})
