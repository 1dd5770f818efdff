"""What the decoder has read for the latest requests, for those that go on from there: turns of one conversation."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from lmmprune.compiler.runtime.held import Held
from lmmprune.compiler.runtime.image_features import ImageFeatures
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.errors import InputError


@dataclass(eq=False)
class _Kept:
    """A beginning, and what was asked last on it."""

    held: Held
    features: tuple[object, ...] = ()
    words: tuple[str, ...] = ()

    def shared(self, features: tuple[object, ...], words: Sequence[str]) -> int:
        """Return how many texts of a request it has read, 0 if not its pictures."""
        if len(features) != len(self.features) or any(a is not b for a, b in zip(features, self.features, strict=True)):
            return 0
        return next((i for i, (a, b) in enumerate(zip(words, self.words, strict=False)) if a != b), len(self.words))


class Prefixes:
    """The beginnings of one bundle, which its threads share; each serves one answer at a time."""

    def __init__(self, runtime: Runtime, room: int) -> None:
        """Begin with none.

        Args:
            runtime: The bundle.
            room: How many are kept, each with a key/value cache.

        Raises:
            InputError: The question chooses which tokens stay: an answer would depend on what was asked before. Or the
                bundle's engines can't go on from what they have read. Or it answers several at once, in one cache.
        """
        manifest = runtime.bundle.manifest
        if room and manifest.batch is not None:
            raise InputError(
                f"--conversations {room}: '{runtime.bundle.path}' answers {manifest.rows} questions at once, which read"
                " their prompts together: leave one out"
            )
        if room and (sites := [site.site for site in manifest.schedule if site.in_decoder]):
            raise InputError(
                f"--conversations {room}: '{runtime.bundle.path}' cuts at {sites[0]}, where the question chooses: an"
                " answer would depend on which one came first; leave it out"
            )
        self._runtime, self._room, self._lock = runtime, room, threading.Lock()
        self._free: list[_Kept] = [_Kept(runtime.hold()) for _ in range(room)]  # the one that was used last, last

    @contextmanager
    def lend(self, pictures: Sequence[ImageFeatures], words: Sequence[str]) -> Iterator[Held | None]:
        """Lend the beginning that a request shares most with, or the one that was used longest ago; None: all are lent.

        Args:
            pictures: The request's.
            words: A question, its answer, the next question, ...
        """
        features = tuple(one.features for one in pictures)
        with self._lock:
            kept = max(self._free, key=lambda one: one.shared(features, words), default=None)
            if kept is not None:
                self._free.remove(kept)
        if kept is None:
            yield None
            return
        try:
            yield kept.held
            kept.features, kept.words = features, tuple(words)
        finally:
            with self._lock:
                self._free.append(kept)
