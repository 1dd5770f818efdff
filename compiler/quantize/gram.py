"""What GPTQ knows of an activation: how its channels go together over everything that was seen of it."""

from __future__ import annotations

import numpy as np

from lmmprune.stored import Array

_ROWS = 512
"""Rows of ``[C]`` that are waited for: a step's single row would pass over all of the matrix."""
_BLOCK = 1024
"""Rows of the matrix that are added to in one go: their product lies beside it."""


class Gram:
    """The sum of x x^T over everything that was seen of an activation ``[...,C]``.

    It is symmetric, and only its upper half is made: half of the work, and all that ``factorize`` reads.
    """

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._matrix: Array | None = None
        self._waiting: list[Array] = []

    def update(self, values: Array) -> None:
        """See an array ``[...,C]``."""
        rows = values.reshape(-1, values.shape[-1]).astype(np.float32, copy=False)
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= _ROWS:
            self._add()

    def matrix(self) -> Array:
        """Return the sum: float32 ``[C,C]``, zero below the blocks of its diagonal.

        It is handed over, not copied: whoever changes it changes what is known.

        Raises:
            ValueError: Nothing was seen.
        """
        self._add()
        if self._matrix is None:
            raise ValueError("nothing was seen of the activation")
        return self._matrix

    def _add(self) -> None:
        if not self._waiting:
            return
        rows = self._waiting[0] if len(self._waiting) == 1 else np.concatenate(self._waiting)
        self._waiting = []
        channels = rows.shape[1]
        if self._matrix is None:
            self._matrix = np.zeros((channels, channels), np.float32)
        for start in range(0, channels, _BLOCK):
            stop = start + _BLOCK
            self._matrix[start:stop, start:] += rows[:, start:stop].T @ rows[:, start:]
