"""Weights that were rounded on samples, kept on disk until the bundle is written: a model of them fits no memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lmmprune.lazy import packed
from lmmprune.stored import Array

FOLDER = "rounded"
"""Within the bundle in the making; it is gone when the bundle is."""


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """A weight ``[K,N]`` in four bits.

    Attributes:
        file: Where it lies, without a suffix.
        shape: K and N.
    """

    file: Path
    shape: tuple[int, int]

    @classmethod
    def keep(cls, file: Path, integers: Array, scales: Array) -> Rounded:
        """Write integers ``[K,N]`` and scales ``[G,N]``."""
        np.save(file.with_suffix(".integers.npy"), packed(np.ascontiguousarray(integers)))
        np.save(file.with_suffix(".scales.npy"), scales)
        return cls(file=file, shape=(integers.shape[0], integers.shape[1]))

    def integers(self) -> Array:
        """Read the integers, int8 ``[K,N]``."""
        halves = np.load(self.file.with_suffix(".integers.npy"))
        signed = np.stack([halves << 4, halves & 0xF0], axis=-1).view(np.int8) >> 4
        return np.asarray(signed.reshape(-1)[: self.shape[0] * self.shape[1]].reshape(self.shape))

    def scales(self) -> Array:
        """Read the scales, float32 ``[G,N]``."""
        return np.asarray(np.load(self.file.with_suffix(".scales.npy")))
