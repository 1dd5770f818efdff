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


class KvCache(Generic[V]):
    """What one answer keeps in a decoder.

    Example::

        cache = KvCache(interface, session.upload)
        outputs = session.run({"input_ids": ids, **others, **cache.feeds()})
        cache.take(outputs, tokens=ids.shape[1])
    """

    def __init__(self, interface: Interface, upload: Callable[[NDArray[Any]], V]) -> None:
        """Begin with nothing: caches of length 0, or of the bundle's fixed length and full of zeros.

        Args:
            interface: The bundle's.
            upload: Makes a value of the back end of an array.
        """
        self._layout, self._upload = interface.cache, upload
        types = {tensor.name: numpy_type(tensor.dtype) for tensor in interface.decoder.inputs}
        layout = interface.cache
        self._empty: dict[str, V] = {}
        for pair, offset in zip(layout.past, layout.length_offsets, strict=True):
            rows = 0 if layout.capacity is None else layout.capacity + offset
            for name in pair:
                # What lies behind the tokens of a fixed cache is multiplied by 0: it must be a number.
                empty = np.zeros((interface.rows, layout.kv_heads, rows, layout.head_dim), types[name])
                self._empty[name] = upload(empty)
        self.clear()

    def clear(self) -> None:
        """Forget the answer; a fixed cache keeps its memory, and the numbers in it, which nothing will see."""
        self._entered, self._values = 0, dict(self._empty)

    def feeds(self) -> dict[str, V]:
        """Return the decoder's inputs that the cache stands for."""
        if self._layout.length is None:
            return dict(self._values)
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

    def keep_first(self, tokens: int, download: Callable[[V], NDArray[Any]]) -> None:
        """Forget all tokens but the first ones.

        A fixed cache keeps the numbers of the others, which nothing will see. One that grows goes through the host.

        Args:
            tokens: How many stay, of those that entered; no cut inside the decoder may lie behind them.
            download: Makes an array of a value of the back end.
        """
        if tokens < self._entered and self._layout.capacity is None:
            for pair, offset in zip(self._layout.past, self._layout.length_offsets, strict=True):
                for name in pair:
                    self._values[name] = self._upload(download(self._values[name])[:, :, : tokens + offset])
        self._entered = min(tokens, self._entered)


class CacheLender(Generic[V]):
    """Lends each answer an empty cache of its own, whatever thread it is in.

    The first touch of memory is slow (a second and more per GiB in a virtual machine), and each prefill would pay for
    it. Engines find the addresses that their CUDA graphs were recorded with.

    Attributes:
        spare: The cache that came back last, for the next answer; None while it is lent.
    """

    def __init__(self, interface: Interface) -> None:
        """Begin without any."""
        self.spare: KvCache[V] | None = None
        self._interface, self._lock, self._closed = interface, threading.Lock(), False

    @contextmanager
    def lend(self, upload: Callable[[NDArray[Any]], V]) -> Iterator[KvCache[V]]:
        """Lend an empty cache, which is kept afterwards unless the answer failed.

        Args:
            upload: Makes a value of the back end of an array.
        """
        with self._lock:
            cache, self.spare = self.spare, None
        cache, sound = cache or KvCache(self._interface, upload), True
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
