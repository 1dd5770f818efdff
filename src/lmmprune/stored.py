"""Where a file of weights holds a tensor's values, and reading them from there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from lmmprune.errors import ModelError

Array = np.ndarray[Any, Any]
_PIECE = 2**22
"""Numbers that are compared in one go."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The very values of a weight, but for the order of their axes, in a file.

    Attributes:
        file: A safetensors file.
        name: The tensor's name in there.
        offset: Where its values begin, in bytes.
        dtype: Their type there.
        shape: Their shape there.
        perm: Axes of the file that the weight's axes are, as in ``Transpose``; None leaves them.
    """

    file: Path
    name: str
    offset: int
    dtype: ir.DataType
    shape: tuple[int, ...]
    perm: tuple[int, ...] | None = None

    @property
    def bytes(self) -> int:
        """Size of the values."""
        return math.prod(self.shape) * int(self.dtype.itemsize)

    def read(self) -> Array:
        """Read all values, in the file's type and order of axes.

        Raises:
            ModelError: The file is gone or shorter than it was.
        """
        array = np.empty(self.shape, self.dtype.numpy())
        self.fill(bytes_of(array))
        return array

    def same_values(self, other: Stored) -> bool:
        """Return whether another tensor holds the same numbers, in whatever type; read in pieces."""
        if self.shape != other.shape:
            return False
        count = math.prod(self.shape)
        for start in range(0, count, _PIECE):
            mine, theirs = (tensor._piece(start, min(_PIECE, count - start)) for tensor in (self, other))
            if not np.array_equal(mine, theirs):
                return False
        return True

    def _piece(self, start: int, count: int) -> Array:
        array = np.empty(count, self.dtype.numpy())
        self.fill(bytes_of(array), start * array.itemsize)
        return array.astype(np.float32)

    def fill(self, buffer: Array, start: int = 0) -> None:
        """Read bytes into a buffer until it is full.

        Args:
            buffer: uint8, contiguous.
            start: Where to begin, in bytes from the first value.

        Raises:
            ModelError: The file is gone or shorter than it was.
        """
        left: Any = memoryview(buffer)  # type: ignore[arg-type]  # NumPy's stubs don't call arrays buffers
        try:
            # A plain read: pages of a mapping would count as this process's memory until all of it is unmapped.
            with self.file.open("rb", buffering=0) as stream:
                stream.seek(self.offset + start)
                while len(left):
                    count = stream.readinto(left)
                    if not count:
                        raise ModelError(f"'{self.file}' became shorter while it was read: '{self.name}' is cut off")
                    left = left[count:]
        except OSError as error:
            raise ModelError(f"'{self.file}' can't be read ({error.strerror or error})") from error


def bytes_of(array: Array) -> Array:
    """Return a contiguous array's memory as uint8, without a copy."""
    return array.reshape(-1).view(np.uint8)
