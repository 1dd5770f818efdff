"""What running an engine needs of a GPU: memory, copies, one stream, and graphs of recorded work.

All work of a device goes to its one stream, in order: a buffer may be used again as soon as the work that reads it is
enqueued. Sizes are in bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Block(Protocol):
    """Device memory at ``address``, at least ``size`` bytes, aligned to 256; it is freed when it is dropped."""

    address: int
    size: int


class Graph(Protocol):
    """Work that was recorded once and is started as a whole."""

    def launch(self) -> None:
        """Enqueue the work.

        Raises:
            TargetError: The device refuses.
        """
        ...


class Device(Protocol):
    """One GPU: ``arch`` as ``sm89``; ``stream`` is the handle that engines enqueue their work on."""

    name: str
    arch: str
    stream: int

    def allocate(self, size: int, purpose: str) -> Block:
        """Reserve memory.

        Raises:
            TargetError: There isn't as much left; the message says what for, how much is needed and how much is free.
        """
        ...

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Enqueue a copy of a contiguous host array; the array may be changed afterwards."""
        ...

    def download(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Wait for the stream and return device memory as a new host array."""
        ...

    def synchronize(self) -> None:
        """Wait until everything that was enqueued is done.

        Raises:
            TargetError: Some of it failed.
        """
        ...

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """Record what ``enqueue`` puts on the stream, without running it.

        Raises:
            TargetError: It holds something that can't be recorded.
        """
        ...

    def memory(self) -> tuple[int, int]:
        """Return free and total memory."""
        ...
