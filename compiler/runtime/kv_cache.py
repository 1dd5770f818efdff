"""The key/value cache between two runs of a decoder, whether it grows or is updated in place."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from lmmprune.compiler.backends.numpy_types import numpy_type
from lmmprune.compiler.bundle.interface import Interface

V = TypeVar("V")


SPARE = 128
"""Tokens that a cache has room for behind those that it must hold, where the run-time chooses."""


class KvCache(Generic[V]):
    """What one answer keeps in a decoder.

    Example::

        cache = KvCache(interface, session.upload, session.download)
        outputs = session.run({"input_ids": ids, **others, **cache.feeds(ids.shape[1])})
        cache.take(outputs, tokens=ids.shape[1])
    """

    def __init__(
        self,
        interface: Interface,
        upload: Callable[[NDArray[Any]], V],
        download: Callable[[V], NDArray[Any]],
        *,
        in_place: bool = True,
    ) -> None:
        """Begin with nothing: caches of length 0, or of the bundle's fixed length and full of zeros.

        Args:
            interface: The bundle's.
            upload: Makes a value of the back end of an array.
            download: Makes an array of a value.
            in_place: Whether a run writes into what it was given, where the bundle allows that. Else its outputs have
                memory of their own.
        """
        self._layout, self._rows, self._upload, self._download = interface.cache, interface.rows, upload, download
        self._types = {tensor.name: numpy_type(tensor.dtype) for tensor in interface.decoder.inputs}
        self._room = interface.cache.capacity or 0
        self._chooses = interface.cache.capacity is None and interface.cache.length is not None and in_place
        # One that has no room of its own is as long as what it holds.
        self._grows = interface.cache.capacity is None and not self._chooses
        self._empty = {name: upload(array) for name, array in self._zeros().items()}
        self.clear()

    def clear(self) -> None:
        """Forget the answer; what is updated in place keeps its memory and the numbers in it, which nothing sees."""
        self._entered, self._values = 0, dict(self._empty)

    def feeds(self, tokens: int) -> dict[str, V]:
        """Return the decoder's inputs that the cache stands for, with room for a run of so many tokens."""
        if self._layout.length is None:
            return dict(self._values)
        if self._chooses and self._entered + tokens > self._room:
            self._make_room(self._entered + tokens)
        return {**self._values, self._layout.length: self._upload(np.array([self._entered], np.int64))}

    def take(self, outputs: Mapping[str, V], tokens: int) -> None:
        """Keep what a run made.

        Args:
            outputs: Of the decoder.
            tokens: How many went into it.
        """
        self._entered += tokens
        for past, present in zip(self._layout.past, self._layout.present, strict=True):
            for into, out in zip(past, present, strict=True):
                self._values[into] = outputs[out]

    @property
    def tokens(self) -> int:
        """How many tokens have entered the decoder."""
        return self._entered

    def keep_first(self, tokens: int) -> None:
        """Forget all tokens but the first ones.

        What is updated in place keeps the numbers of the others, which nothing will see. A cache that grows goes
        through the host.

        Args:
            tokens: How many stay, of those that entered; no cut inside the decoder may lie behind them.
        """
        if tokens < self._entered and self._grows:
            for name, offset in self._names():
                self._values[name] = self._upload(self._download(self._values[name])[:, :, : tokens + offset])
        self._entered = min(tokens, self._entered)

    def _make_room(self, tokens: int) -> None:
        """Move to memory for so many tokens, and for some more: seldom, as all is copied."""
        old = {name: self._download(value) for name, value in self._values.items()}
        self._room = max(tokens + SPARE, self._room + self._room // 4)
        for (name, offset), array in zip(self._names(), self._zeros().values(), strict=True):
            held = max(0, self._entered + offset)
            array[:, :, :held] = old[name][:, :, :held]
            self._values[name] = self._upload(array)
        self._empty = dict(self._values)

    def _zeros(self) -> dict[str, NDArray[Any]]:
        # What lies behind the tokens is multiplied by 0 in some graphs: it must be a number.
        layout = self._layout
        return {
            name: np.zeros(
                (self._rows, layout.kv_heads, max(0, self._room + offset), layout.head_dim), self._types[name]
            )
            for name, offset in self._names()
        }

    def _names(self) -> list[tuple[str, int]]:
        """Return the caches' inputs, each with what its length differs by from the tokens that entered."""
        layout = self._layout
        return [
            (name, offset) for pair, offset in zip(layout.past, layout.length_offsets, strict=True) for name in pair
        ]


class CacheLender(Generic[V]):
    """Lends each answer an empty cache of its own, whatever thread it is in.

    The first touch of memory is slow (a second and more per GiB in a virtual machine), and each prefill would pay for
    it. Engines find the addresses that their CUDA graphs were recorded with.

    Attributes:
        spare: The cache that came back last, for the next answer; None while it is lent.
    """

    def __init__(self, interface: Interface, *, in_place: bool = True) -> None:
        """Begin without any; ``in_place`` is that of ``KvCache``."""
        self.spare: KvCache[V] | None = None
        self._in_place = in_place
        self._interface, self._lock, self._closed = interface, threading.Lock(), False

    @contextmanager
    def lend(self, upload: Callable[[NDArray[Any]], V], download: Callable[[V], NDArray[Any]]) -> Iterator[KvCache[V]]:
        """Lend an empty cache, which is kept afterwards unless the answer failed.

        Args:
            upload: Makes a value of the back end of an array.
            download: Makes an array of a value.
        """
        with self._lock:
            cache, self.spare = self.spare, None
        cache, sound = cache or KvCache(self._interface, upload, download, in_place=self._in_place), True
        try:
            yield cache
        except Exception:
            sound = False  # what isn't a number would stay in it
            raise
        finally:
            if sound:
                cache.clear()
                with self._lock:
                    self.spare = None if self._closed else cache

    def close(self) -> None:
        """Let go of the spare cache, and of those that come back."""
        with self._lock:
            self._closed, self.spare = True, None
