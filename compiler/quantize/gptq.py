"""Round a weight to four bits one input after the other; the inputs to come make up for the error."""

from __future__ import annotations

import math

import numpy as np

from lmmprune.passes.int4.int4 import HIGHEST, LOWEST
from lmmprune.passes.int8.int8 import representable
from lmmprune.stored import Array

_BLOCK = 128
"""Inputs that are rounded before the errors of all are summed up anew; groups divide it."""
_COLUMNS = 4096
"""Output channels at a time: they know nothing of each other."""


def round_weight(weight: Array, factor: Array, *, group: int, dtype: str = "float32") -> tuple[Array, Array]:
    """Round a weight to -8..7 times a scale for each group of inputs, so that its products err least.

    Args:
        weight: ``[K,N]``, K inputs and N output channels.
        factor: float32 ``[K,K]`` from ``factorize``; only what is in and above its diagonal is read.
        group: Inputs that share a scale, g; one of ``GROUPS``.
        dtype: Floating-point type that the scales must fit into.

    Returns:
        int8 ``[K,N]`` and float32 scales ``[ceil(K/g),N]``.

    Reference:
        Frantar et al. 2022, GPTQ, arXiv 2210.17323, eq. 2 and 3, algorithm 1: inputs in their order, a group's scales
        taken when its first input is reached.
    """
    inputs, outputs = weight.shape
    integers = np.empty((inputs, outputs), np.int8)
    scales = np.empty((math.ceil(inputs / group), outputs), np.float32)
    for start in range(0, outputs, _COLUMNS):
        some = slice(start, start + _COLUMNS)
        _round_columns(weight[:, some], factor, group, dtype, integers[:, some], scales[:, some])
    return integers, scales


def _round_columns(weight: Array, factor: Array, group: int, dtype: str, integers: Array, scales: Array) -> None:
    """Write the integers and the scales of some output channels.

    With S the inputs that are rounded, F those that aren't and E what S was off, F's best weights are
    W_F + H_FF^-1 H_FS E_S (eq. 2, for all of S at once) = W_F + R_FF^-T R_SF^T E_S, as H = R R^T. R_FF^-T is lower
    triangular: the next few inputs need its first corner alone, and no inverse of the whole.
    """
    errors = weight.astype(np.float32)  # of the inputs that are rounded; of the others, the weights
    for start in range(0, len(errors), _BLOCK):
        stop = min(start + _BLOCK, len(errors))
        inverse = np.linalg.inv(np.triu(factor[start:stop, start:stop]).astype(np.float64)).astype(np.float32)
        left = errors[start:stop] + inverse.T @ (factor[:start, start:stop].T @ errors[:start])
        for row in range(stop - start):
            index = (start + row) // group
            if (start + row) % group == 0:
                reach = np.abs(left[row : row + group]).max(axis=0)
                scales[index] = representable(reach / np.float32(HIGHEST), dtype)
            rounded = np.clip(np.rint(left[row] / scales[index]), LOWEST, HIGHEST)
            integers[start + row] = rounded
            stored = rounded * scales[index]
            left[row + 1 :] -= np.outer(inverse[row, row + 1 :] / inverse[row, row], left[row] - stored)
            errors[start + row] -= stored
