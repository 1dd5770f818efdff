"""Round a weight to four bits one input after the other; the inputs to come make up for the error."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lmmprune.passes.int4.int4 import HIGHEST, LOWEST
from lmmprune.passes.int8.int8 import representable
from lmmprune.stored import Array

DAMPING = 0.01
"""Of the mean of the diagonal, added to it: the samples are few, and some channels hardly vary."""
_BLOCK = 128
"""Inputs whose errors go on to the others in one product."""


class Gram:
    """The sum of x x^T over everything that was seen of an activation ``[...,C]``, float32 ``[C,C]``."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self.matrix: Array | None = None

    def update(self, values: Array) -> None:
        """See an array ``[...,C]``."""
        rows = values.reshape(-1, values.shape[-1]).astype(np.float32, copy=False)
        seen = rows.T @ rows
        if self.matrix is None:
            self.matrix = seen
        else:
            self.matrix += seen


def round_weight(weight: Array, gram: Array, *, group: int, dtype: str = "float32") -> tuple[Array, Array]:
    """Round a weight to -8..7 times a scale for each group of inputs, so that its products err least.

    Args:
        weight: ``[K,N]``, K inputs and N output channels.
        gram: float32 ``[K,K]``, from ``Gram``.
        group: Inputs that share a scale, g.
        dtype: Floating-point type that the scales must fit into.

    Returns:
        int8 ``[K,N]`` and float32 scales ``[ceil(K/g),N]``.

    Reference:
        Frantar et al. 2022, GPTQ, arXiv 2210.17323, eq. 2 and 3, algorithm 1: inputs in their order, a group's scales
        taken when its first input is reached.
    """
    left = weight.astype(np.float32)  # what is to be stored, errors of earlier inputs included
    inputs, outputs = left.shape
    factor = _inverse_factor(gram)
    integers = np.empty((inputs, outputs), np.int8)
    scales = np.empty((math.ceil(inputs / group), outputs), np.float32)
    for start in range(0, inputs, _BLOCK):
        stop = min(start + _BLOCK, inputs)
        errors = np.empty((stop - start, outputs), np.float32)
        for row in range(start, stop):
            if row % group == 0:
                reach = np.abs(left[row : row + group]).max(axis=0)
                scales[row // group] = representable(reach / np.float32(HIGHEST), dtype)
            scale = scales[row // group]
            rounded = np.clip(np.rint(left[row] / scale), LOWEST, HIGHEST)
            integers[row] = rounded
            error = (left[row] - rounded * scale) / factor[row, row]
            left[row + 1 : stop] -= np.outer(factor[row, row + 1 : stop], error)
            errors[row - start] = error
        left[stop:] -= factor[start:stop, stop:].T @ errors
    return integers, scales


_WIDE = 8192
"""Inputs up to which the inverse is computed in float64."""


def _inverse_factor(gram: Array) -> Array:
    """Return the upper Cholesky factor of the inverse, float32."""
    # The widest ones are gigabytes.
    matrix: Any = gram.astype(np.float64 if len(gram) <= _WIDE else np.float32)
    diagonal = np.diagonal(matrix).copy()
    # A channel that is always zero says nothing of its weights: any number will do.
    diagonal[diagonal == 0] = 1.0
    np.fill_diagonal(matrix, diagonal + DAMPING * diagonal.mean())
    inverse = np.linalg.inv(matrix)
    return np.asarray(np.linalg.cholesky((inverse + inverse.T) / 2).T, np.float32)
