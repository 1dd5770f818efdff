"""A weight that a checkpoint holds as integers with scales, whatever tool packed it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from lmmprune.errors import ModelError
from lmmprune.models.checkpoint_reader import CheckpointReader
from lmmprune.stored import Array, Stored


@dataclass(frozen=True, kw_only=True)
class PackedWeight(Stored, ABC):
    """A weight ``[N,K]`` in integers: worth ``(integer - zero) * scale``, each group of inputs of an output its own.

    ``dtype`` is the scales' type; ``file`` and ``offset`` are those of the integers.

    Attributes:
        parts: The tensors that it is made of, by the last part of their names.
        bits: Of an integer, 4 or 8.
        group: Inputs that share a scale, g; K if all do.
    """

    parts: Mapping[str, Stored] = field(compare=False)
    bits: int
    group: int

    @property
    def inputs(self) -> int:
        """How many inputs it has, K."""
        return self.shape[1]

    @property
    def groups(self) -> int:
        """How many groups its inputs have, G."""
        return math.ceil(self.inputs / self.group)

    @abstractmethod
    def as_packed(self) -> Array:
        """Read the integers, uint8 ``[K,N]`` from 0 on."""

    @abstractmethod
    def all_zeros(self) -> Array | None:
        """Read the zero points, uint8 ``[G,N]``; None where the format has none: it is the middle."""

    @abstractmethod
    def scales(self) -> Array:
        """Read the scales, ``[G,N]`` in the checkpoint's type."""

    def owners(self) -> Array | None:
        """Read the group of each input, ``[K]``; None: they lie one behind the other."""
        return None

    def order(self) -> Array | None:
        """Return the order of inputs, int64 ``[K]``, in which groups lie one behind the other; None: they do already.

        Raises:
            ModelError: Groups of other sizes.
        """
        owners = self.owners()
        together = np.arange(self.inputs) // self.group
        if owners is None or np.array_equal(owners, together):
            return None
        order = np.argsort(owners, kind="stable").astype(np.int64)
        if not np.array_equal(owners[order], together):
            raise ModelError(
                f"'{self.name}' has inputs in groups of other sizes than {self.group} (g_idx): no runtime takes them;"
                " quantize the floating-point checkpoint anew"
            )
        return order

    def integers(self) -> Array:
        """Return the integers, uint8 ``[K,N]`` from 0 on, its inputs in ``order``."""
        found, order = self.as_packed(), self.order()
        return found if order is None else found[order]

    def zeros(self) -> Array | None:
        """Return the zero points, uint8 ``[G,N]``; None if all are the middle, as in symmetric weights."""
        found = self.all_zeros()
        return None if found is None or bool((found == 1 << (self.bits - 1)).all()) else found

    def read(self) -> Array:
        """Return what it is worth, float32 ``[N,K]``: exact for scales of 16 bits."""
        zeros, scales, owners = self.all_zeros(), self.scales().astype(np.float32), self.owners()
        result = self.as_packed().astype(np.float32)
        if owners is None:
            owners = np.arange(self.inputs) // self.group
        result -= np.float32(1 << (self.bits - 1)) if zeros is None else zeros[owners]
        result *= scales[owners]
        return result.T

    def _piece(self, start: int, count: int) -> Array:
        return self.read().reshape(-1)[start : start + count]


@dataclass(frozen=True, kw_only=True)
class Dequantized:
    """Reads what a packed weight is worth.

    Attributes:
        packed: The weight.
        checkpoint: Collects what isn't a number.
    """

    packed: PackedWeight
    checkpoint: CheckpointReader

    def __call__(self) -> Array:
        """Return the values, float32 ``[N,K]``."""
        self.checkpoint.note(self.packed.name, int(np.count_nonzero(~np.isfinite(self.packed.scales()))))
        return self.packed.read()
