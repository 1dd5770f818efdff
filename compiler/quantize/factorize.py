"""The Cholesky factor that GPTQ needs, made in place from a matrix of gigabytes, and never its inverse."""

from __future__ import annotations

import numpy as np

from lmmprune.stored import Array

DAMPING = 0.01
"""Of the mean of the diagonal, added to it: the samples are few, and some channels hardly vary."""
_BLOCK = 256
"""Columns of the factor that are made in one go."""


def factorize(matrix: Array) -> Array:
    """Turn H, damped, into the upper triangular R with H = R R^T, in its own memory.

    It is the Cholesky factor of H with its rows and columns reversed, reversed again, so it is made from the last
    column to the first. GPTQ's own factor U, with H^-1 = U^T U, is R^-1: R says the same and takes one matrix instead
    of four (H, its factor, the inverse and the inverse's factor).

    float32 is enough. Cholesky's method is stable: R R^T is off H by some 1e-6 of the diagonal, where the damping adds
    1e-2 of it.

    Args:
        matrix: float ``[K,K]``, what is in and above its diagonal; overwritten.

    Returns:
        The same array: R in and above the diagonal, and nothing of use below.
    """
    diagonal = np.diagonal(matrix).copy()
    # A channel that is always zero says nothing of its weights: any number will do.
    diagonal[diagonal == 0] = 1.0
    np.fill_diagonal(matrix, diagonal + DAMPING * diagonal.mean())
    for stop in range(len(matrix), 0, -_BLOCK):
        start = max(stop - _BLOCK, 0)
        columns = matrix[:stop, start:stop]
        columns -= matrix[:stop, stop:] @ matrix[start:stop, stop:].T
        corner = np.linalg.cholesky(columns[start:].astype(np.float64)[::-1, ::-1])[::-1, ::-1]
        columns[start:] = corner
        columns[:start] = columns[:start] @ np.linalg.inv(corner).T.astype(matrix.dtype)
    return matrix
