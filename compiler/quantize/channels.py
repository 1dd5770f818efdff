"""What smoothing needs to know of an activation: how large each channel gets, and some of its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lmmprune.compiler.quantize.observe import FETCHED_BYTES, watch_values
from lmmprune.compiler.runtime.decode_steps import Steps, drive
from lmmprune.errors import InputError
from lmmprune.stored import Array

ROWS = 64


@dataclass(frozen=True, kw_only=True)
class ChannelStats:
    """Of a value ``[..., C]`` over all samples.

    Attributes:
        lows: float32 ``[C]``, the smallest value of each channel.
        highs: float32 ``[C]``, the largest one.
        rows: float32 ``[R, C]``, tokens evenly spaced over everything that was seen, in its order.
    """

    lows: Array
    highs: Array
    rows: Array

    @property
    def maxima(self) -> Array:
        """The largest absolute value of each channel, float32 ``[C]``."""
        return np.maximum(self.highs, -self.lows)


def observe_channels(
    graph: Path,
    names: Sequence[str],
    samples: Sequence[Callable[[], Steps]],
    *,
    rows: int = ROWS,
    limit: int = FETCHED_BYTES,
    done: Callable[[int], None] = lambda finished: None,
) -> dict[str, ChannelStats]:
    """Run a float32 graph on samples and return what was seen of some values, per channel of their last axis.

    Args:
        graph: ONNX file; its external data stays where it is.
        names: Values to watch.
        samples: Each starts the runs of one sample.
        rows: Rows to keep of each value at most, R; once that many were seen, at least half as many are kept.
        limit: Bytes of watched values that a session may hold.
        done: Called with the number of finished samples after each.

    Raises:
        InputError: A value holds NaN or infinity.
    """
    if not names:
        return {}
    seen = {name: ChannelRows(name, rows) for name in names}
    run = watch_values(graph, names, lambda name, array: seen[name].update(array), limit=limit)
    for index, sample in enumerate(samples):
        drive(sample(), run)
        done(index + 1)
    return {name: channels.result() for name, channels in seen.items()}


class ChannelRows:
    """The stream of one value: the ends of each channel, and every s-th row, where s doubles if there are too many."""

    def __init__(self, name: str, limit: int = ROWS) -> None:
        """Start with nothing seen of the value ``name``; keep ``limit`` rows at most."""
        self._name = name
        self._limit = limit
        self._stride = 1
        self._count = 0
        self._lows: Array | None = None
        self._highs: Array | None = None
        self._rows: list[Array] = []

    def update(self, values: Array) -> None:
        """See an array ``[..., C]``.

        Raises:
            InputError: It holds NaN or infinity.
        """
        table = values.reshape(-1, values.shape[-1]).astype(np.float32, copy=False)
        if not len(table):
            return
        lows, highs = table.min(0), table.max(0)
        if not (np.isfinite(lows) & np.isfinite(highs)).all():
            raise InputError(
                f"'{self._name}' holds NaN or infinity on the calibration data, smoothing needs finite activations:"
                " check the checkpoint, or export without --int8"
            )
        self._lows = lows if self._lows is None else np.minimum(self._lows, lows)
        self._highs = highs if self._highs is None else np.maximum(self._highs, highs)
        first = -self._count % self._stride
        self._count += len(table)
        while len(self._rows) + len(range(first, len(table), self._stride)) > self._limit:
            # Kept are the rows 0, s, 2s, ... of the stream: every second of them are 0, 2s, 4s, ...
            self._rows = self._rows[::2]
            self._stride *= 2
            first = -(self._count - len(table)) % self._stride
        self._rows += [row.copy() for row in table[first :: self._stride]]

    def result(self) -> ChannelStats:
        """Return what was seen.

        Raises:
            InputError: Nothing was.
        """
        if self._lows is None or self._highs is None:
            raise InputError(f"nothing was seen of '{self._name}': calibrate with one sample or more")
        return ChannelStats(lows=self._lows, highs=self._highs, rows=np.stack(self._rows))
