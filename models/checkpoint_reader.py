"""Read the tensors of one checkpoint, and collect what isn't a number in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lmmprune.errors import ModelError
from lmmprune.lazy import count_non_finite
from lmmprune.models.adapter import Update
from lmmprune.stored import Array, Stored


class CheckpointReader:
    """What has been seen of a checkpoint while its weights were read, by whoever read them."""

    def __init__(self, directory: Path | None) -> None:
        """Begin with nothing read; ``directory`` is named in errors."""
        self._directory = directory
        self._broken: dict[str, int] = {}

    def read(self, stored: Stored) -> Array:
        """Return the values of a tensor in the checkpoint's own type."""
        array = stored.read()
        self.note(stored.name, count_non_finite(array))
        return array

    def note(self, name: str, broken: int) -> None:
        """Remember that so many values of a tensor are NaN or infinity."""
        if broken:
            self._broken[name] = broken

    def refuse_damage(self) -> None:
        """Refuse the checkpoint if something was read that isn't a number.

        Raises:
            ModelError: Names and counts.
        """
        if not self._broken:
            return
        rows = sorted(self._broken.items())
        named = ", ".join(f"'{name}' ({count})" for name, count in rows[:5])
        more = f" and {len(rows) - 5} more tensors" if len(rows) > 5 else ""
        raise ModelError(
            f"the checkpoint '{self._directory}' holds NaN or infinity: {sum(self._broken.values())} values in"
            f" {named}{more}; download it again, or repair these weights"
        )


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Reads one tensor of a checkpoint.

    Attributes:
        stored: Where it lies.
        checkpoint: Collects what isn't a number.
    """

    stored: Stored
    checkpoint: CheckpointReader

    def __call__(self) -> Array:
        """Return the values in the checkpoint's own type."""
        return self.checkpoint.read(self.stored)


@dataclass(frozen=True, kw_only=True)
class Merged:
    """Reads one tensor of a checkpoint with an adapter's product added to it.

    Attributes:
        reader: Reads the checkpoint's.
        update: What is added.
    """

    reader: Reader
    update: Update

    def __call__(self) -> Array:
        """Return the values, float32."""
        merged = self.update.apply(self.reader())
        self.reader.checkpoint.note(self.update.a.name, count_non_finite(merged))
        return merged
