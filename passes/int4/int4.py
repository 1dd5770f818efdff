"""The arithmetic of INT4: symmetric integers of four bits, one scale for each group of inputs of an output channel."""

from __future__ import annotations

import math

import numpy as np

from lmmprune.passes.int8.int8 import representable
from lmmprune.stored import Array

GROUPS = (32, 64, 128)
"""Inputs that may share a scale."""

INT4_OPSET = 21
"""The first with four bits and groups."""

LOWEST, HIGHEST = -8, 7

_BLOCK = 2**20
"""Values that are float32 at a time: few enough for a cache."""


def quantize_groups(weight: Array, group: int, dtype: str = "float32") -> tuple[Array, Array]:
    """Round a weight to the nearest of -7..7 times a scale.

    The largest value of a group becomes 7 or -7, so that nothing is cut off. A last group that is shorter stands for
    itself.

    Args:
        weight: ``[K,N]``, K inputs and N output channels, of any floating-point type; a transposed view is fine.
        group: Inputs that share a scale, g.
        dtype: Floating-point type that the scales must fit into.

    Returns:
        int8 ``[K,N]`` and float32 scales ``[ceil(K/g),N]``.
    """
    inputs, outputs = weight.shape
    groups = math.ceil(inputs / group)
    integers = np.empty((outputs, inputs), np.int8)
    scales = np.empty((outputs, groups), np.float32)
    step = max(_BLOCK // max(inputs, 1), 1)
    with np.errstate(invalid="ignore"):  # who reads the checkpoint counts what isn't a number, and names it
        for start in range(0, outputs, step):
            rows = np.zeros((len(weight.T[start : start + step]), groups * group), np.float32)
            rows[:, :inputs] = weight.T[start : start + step]
            grouped = rows.reshape(len(rows), groups, group)
            found = representable(np.abs(grouped).max(axis=2) / np.float32(HIGHEST), dtype)
            grouped /= found[:, :, None]
            np.rint(grouped, out=grouped)
            np.clip(grouped, LOWEST, HIGHEST, out=grouped)
            integers[start : start + step] = rows[:, :inputs]
            scales[start : start + step] = found
    return integers.T, scales.T


def dequantize_groups(integers: Array, scales: Array, group: int) -> Array:
    """Return what a weight is worth, float32 ``[K,N]``.

    Args:
        integers: ``[K,N]``.
        scales: ``[ceil(K/g),N]``.
        group: Inputs that share a scale, g.
    """
    made = np.empty(integers.shape, np.float32)
    for index, scale in enumerate(scales):
        some = slice(index * group, (index + 1) * group)
        np.multiply(integers[some], scale, out=made[some], dtype=np.float32)
    return made
