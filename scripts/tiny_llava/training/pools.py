"""Pools of pre-rendered training scenes, as arrays."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from multiprocessing import get_context

import numpy as np
from numpy.typing import NDArray

from lmmprune.models.tiny_llava.digits import Split
from lmmprune.models.tiny_llava.scenes import COLOUR_NAMES, MAX_DIGITS, Scene, scenes

_CHUNK = 500


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Scenes as arrays; S scenes, D = MAX_DIGITS digit slots, -1 in unused slots.

    Attributes:
        pixels: uint8 `[S, 96, 96, 3]`.
        truth: int64 `[S, D, 4]`, (value, colour index, x, y) per digit.
        owners: int8 `[S, 12, 12]`, digit slot owning the patch, -1 = none.
        scenes: the digits of each scene, for asking questions.
    """

    pixels: NDArray[np.uint8]
    truth: NDArray[np.int64]
    owners: NDArray[np.int8]
    scenes: Sequence[Scene]

    def __len__(self) -> int:
        """Return the number of scenes."""
        return len(self.pixels)


def _chunk(seed: int, split: Split) -> list[Scene]:
    return list(scenes(split, _CHUNK, seed=seed))


def _truth(scene: Scene) -> NDArray[np.int64]:
    table = np.full((MAX_DIGITS, 4), -1, np.int64)
    for slot, digit in enumerate(scene.digits):
        table[slot] = (digit.value, COLOUR_NAMES.index(digit.colour), digit.x, digit.y)
    return table


def make_pool(count: int, *, seed: int, split: Split = "train", workers: int = 2) -> Pool:
    """Render about `count` scenes (a multiple of 500) in worker processes."""
    seeds = range(seed, seed + max(count // _CHUNK, 1))
    # "spawn": forking after PyTorch has started its threads can deadlock.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
        drawn = list(chain.from_iterable(executor.map(partial(_chunk, split=split), seeds)))
    pixels = np.stack([scene.pixels for scene in drawn])
    owners = np.stack([scene.owners for scene in drawn])
    truth = np.stack([_truth(scene) for scene in drawn])
    return Pool(pixels=pixels, truth=truth, owners=owners, scenes=drawn)
