"""Device buffers that are used again and again: an engine's outputs, and what is uploaded for it.

A tensor holds its buffer until it is dropped; the next output of the same name then takes it. A key/value cache that
is fed back thereby alternates between two buffers: while a step reads one, it writes the other.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmmprune.compiler.backends.device import Block, Device

# Bytes: what CUDA rounds up to is of this order, and engines want an address even for a tensor without elements.
_SMALLEST = 2**16


class Lease:
    """A block on loan from a pool; it goes back when the lease is dropped."""

    def __init__(self, block: Block, returned: list[Block]) -> None:
        """Use ``Pool.take`` instead."""
        self.address = block.address
        self._block, self._returned = block, returned

    def __del__(self) -> None:
        self._returned.append(self._block)


@dataclass(frozen=True, kw_only=True)
class DeviceTensor:
    """A tensor on the device."""

    lease: Lease
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def address(self) -> int:
        """Where it begins."""
        return self.lease.address


class Pool:
    """The buffers of one session, by what they are for."""

    def __init__(self, device: Device) -> None:
        """Start without any."""
        self._device = device
        self._idle: defaultdict[str, list[Block]] = defaultdict(list)
        self.allocations = 0

    def take(self, purpose: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceTensor:
        """Return a tensor of this shape whose values are whatever was there.

        Args:
            purpose: Tensors for the same purpose share buffers.
            shape: Its shape.
            dtype: Its type.

        Raises:
            TargetError: The device has no memory left.
        """
        needed = math.prod(shape) * dtype.itemsize
        idle = self._idle[purpose]
        block = next((block for block in idle if block.size >= needed), None)
        if block is None:
            idle.clear()  # too small: freed before the larger one is reserved
            block = self._device.allocate(roomy(needed), f"'{purpose}' {list(shape)} {dtype}")
            self.allocations += 1
        else:
            idle.remove(block)
        return DeviceTensor(lease=Lease(block, idle), shape=shape, dtype=dtype)


def roomy(size: int) -> int:
    """Return a size that a growing buffer of ``size`` bytes gets: up to a quarter more, so that it rarely grows."""
    step = max(_SMALLEST, 1 << max(size.bit_length() - 3, 0))
    return max(-(-size // step), 1) * step
