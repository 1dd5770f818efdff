"""Device buffers that are used again and again: an engine's outputs, and what is uploaded for it.

The outputs of one run share a buffer. They hold it until the last of them is dropped; then another run takes it. A
key/value cache that is fed back thereby alternates between two buffers: while a step reads one, it writes the other.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np

from lmmprune.compiler.backends.device import Block, Device

# Bytes: what CUDA rounds up to is of this order, and engines want an address even for a tensor without elements.
_SMALLEST = 2**16
_ALIGNMENT = 256  # of every address that an engine is given


class Lease:
    """A block on loan from a pool; it goes back when the lease is dropped."""

    def __init__(self, block: Block, returned: list[Block]) -> None:
        """Use ``Pool.take`` instead."""
        self.address = block.address
        self._block, self._returned = block, returned

    def __del__(self) -> None:
        self._returned.append(self._block)


class DeviceTensor(NamedTuple):
    """A tensor on the device: where it begins, and the lease of the buffer that it lies in."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    lease: Lease


class Pool:
    """The buffers of one session, by what they are for."""

    def __init__(self, device: Device) -> None:
        """Start without any."""
        self._device = device
        self._idle: defaultdict[str, list[Block]] = defaultdict(list)
        self.allocations = 0

    def take(self, purpose: str, size: int) -> Lease:
        """Return a buffer of at least ``size`` bytes whose contents are whatever was there.

        Args:
            purpose: What it is for; only such buffers are used again for it.
            size: Bytes.

        Raises:
            TargetError: The device has no memory left.
        """
        idle = self._idle[purpose]
        if fitting := [block for block in idle if block.size >= size]:
            # Always the same of several, or the addresses that a CUDA graph is recorded with would wander.
            block = min(fitting, key=lambda block: (block.size, block.address))
            idle.remove(block)
            return Lease(block, idle)
        idle.clear()  # too small: freed before the larger one is reserved
        self.allocations += 1
        return Lease(self._device.allocate(roomy(size), purpose), idle)


def padded(size: int) -> int:
    """Return a size after which another tensor may begin."""
    return (size + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT


def roomy(size: int) -> int:
    """Return a size that a growing buffer of ``size`` bytes gets: up to a quarter more, so that it rarely grows."""
    step = max(_SMALLEST, 1 << max(size.bit_length() - 3, 0))
    return max(-(-size // step), 1) * step
