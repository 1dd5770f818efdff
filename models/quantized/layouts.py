"""How AutoAWQ, AutoGPTQ and compressed-tensors lay out a packed weight."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lmmprune.models.quantized.packed_weight import PackedWeight
from lmmprune.models.quantized.words import unpack_columns, unpack_rows
from lmmprune.stored import Array

# Of eight neighbouring outputs, the one that each four bits of a word hold (AutoAWQ, "gemm").
_AWQ = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True, kw_only=True)
class AwqWeight(PackedWeight):
    """AutoAWQ's ``gemm``: ``qweight [K,N/8]``, ``qzeros [G,N/8]``, ``scales [G,N]``."""

    def as_packed(self) -> Array:
        """Read the integers."""
        return unpack_columns(self.parts["qweight"].read(), self.bits, _AWQ)

    def all_zeros(self) -> Array | None:
        """Read the zero points."""
        return unpack_columns(self.parts["qzeros"].read(), self.bits, _AWQ)

    def scales(self) -> Array:
        """Read the scales."""
        return self.parts["scales"].read()


@dataclass(frozen=True, kw_only=True)
class GptqWeight(PackedWeight):
    """AutoGPTQ's: ``qweight [K*b/32,N]``, ``qzeros [G,N*b/32]``, ``scales [G,N]``, ``g_idx [K]``.

    Attributes:
        less: What was taken off a zero point before it was packed: 1, and 0 in the second version of the format.
    """

    less: int

    def as_packed(self) -> Array:
        """Read the integers."""
        return unpack_rows(self.parts["qweight"].read(), self.bits)

    def all_zeros(self) -> Array | None:
        """Read the zero points."""
        found = unpack_columns(self.parts["qzeros"].read(), self.bits)
        # 0 less 1 was packed as the largest number [ours: that undoes every zero point of so many bits].
        return (found + np.uint8(self.less)) & np.uint8(2**self.bits - 1)

    def scales(self) -> Array:
        """Read the scales."""
        return self.parts["scales"].read()

    def owners(self) -> Array | None:
        """Read ``g_idx``."""
        return self.parts["g_idx"].read() if "g_idx" in self.parts else None


@dataclass(frozen=True, kw_only=True)
class CompressedWeight(PackedWeight):
    """compressed-tensors' ``pack-quantized``: ``weight_packed [N,K*b/32]``, ``weight_scale [N,G]``.

    ``weight_zero_point [N*b/32,G]`` and ``weight_g_idx [K]`` where there are any. All integers are half of their range
    more than they were.
    """

    def as_packed(self) -> Array:
        """Read the integers."""
        return np.ascontiguousarray(unpack_columns(self.parts["weight_packed"].read(), self.bits)[:, : self.inputs].T)

    def all_zeros(self) -> Array | None:
        """Read the zero points."""
        if "weight_zero_point" not in self.parts:
            return None
        words = self.parts["weight_zero_point"].read()
        return np.ascontiguousarray(unpack_rows(words, self.bits)[: self.shape[0]].T)

    def scales(self) -> Array:
        """Read the scales."""
        return by_group(self.parts["weight_scale"].read(), self.shape[0])

    def owners(self) -> Array | None:
        """Read ``weight_g_idx``."""
        return self.parts["weight_g_idx"].read() if "weight_g_idx" in self.parts else None


@dataclass(frozen=True, kw_only=True)
class PlainWeight(PackedWeight):
    """compressed-tensors' ``int-quantized``: ``weight [N,K]`` of int8, scales and zero points ``[N,1]``."""

    def as_packed(self) -> Array:
        """Read the integers."""
        return np.ascontiguousarray(_raised(self.parts["weight"].read()).T)

    def all_zeros(self) -> Array | None:
        """Read the zero points."""
        if "weight_zero_point" not in self.parts:
            return None
        return _raised(by_group(self.parts["weight_zero_point"].read(), self.shape[0]))

    def scales(self) -> Array:
        """Read the scales."""
        return by_group(self.parts["weight_scale"].read(), self.shape[0])


def by_group(array: Array, outputs: int) -> Array:
    """Return what lies ``[N,G]``, ``[N]`` or is one number for all as ``[G,N]``."""
    spread = np.broadcast_to(array.reshape(-1, 1), (outputs, 1)) if array.size in (1, outputs) else array
    return np.ascontiguousarray(spread.T)


def _raised(signed: Array) -> Array:
    """Return int8 as uint8, 128 more."""
    return np.asarray(signed.view(np.uint8) ^ np.uint8(0x80))
