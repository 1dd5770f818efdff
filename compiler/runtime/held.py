"""What a conversation keeps in a decoder from turn to turn: the cache, the tokens in it, and what was chosen."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from numpy.typing import NDArray

from lmmprune.compiler.backends.session import Value
from lmmprune.compiler.bundle.interface import Interface
from lmmprune.compiler.runtime.encoded import Encoded
from lmmprune.compiler.runtime.image_features import ImageFeatures
from lmmprune.compiler.runtime.kv_cache import KvCache
from lmmprune.errors import InputError
from lmmprune.names import IMAGE_FEATURES

Run = Callable[[Mapping[str, Value]], Mapping[str, Value]]


class Held:
    """The beginning that prompts share: what of it the decoder has read isn't given to it again.

    Where the question has a say in which visual tokens stay (at ``llm_input`` sites), the first question's choice
    stands for as long as the pictures do [ours]: a token that was dropped can't come back behind a cut, and keys and
    values behind it are of the tokens that stayed.
    """

    def __init__(
        self,
        interface: Interface,
        upload: Callable[[NDArray[Any]], Value],
        download: Callable[[Value], NDArray[Any]],
    ) -> None:
        """Begin with nothing.

        Args:
            interface: The bundle's.
            upload: Makes a value of the decoder's back end.
            download: Reads one.
        """
        self._interface, self._upload, self._download = interface, upload, download
        self._turn = threading.Lock()
        self._cuts = bool(interface.decoder_sites)
        self._drops_text = any(site.text_removed for site in interface.decoder_sites)
        self._chosen: dict[tuple[int, int], tuple[Value, Mapping[str, Value]]] = {}
        self.forget()

    def forget(self) -> None:
        """Forget what was read; what a selection chose of the pictures stays."""
        self._cache: KvCache[Value] | None = None
        self._ids: list[int] = []
        self._spans: tuple[tuple[int, int], ...] = ()
        self._features: list[Value] = []
        self._first = 0

    @property
    def tokens(self) -> int:
        """Tokens in the cache."""
        return len(self._ids)

    def shared(self, prompt: Encoded, pictures: Sequence[ImageFeatures]) -> int:
        """Return how many tokens of a prompt the cache holds; one at least is left to be read, for its logits.

        Args:
            prompt: As it enters the decoder, with a placeholder per token.
            pictures: Its pictures.
        """
        ids = prompt.input_ids[0].tolist()
        most = min(len(self._ids), len(ids) - 1)
        same = next((i for i in range(most) if ids[i] != self._ids[i]), most)
        old, new = zip(self._spans, self._features, strict=True), zip(prompt.spans, _features(pictures), strict=True)
        for (mine, own), (theirs, other) in zip(old, new, strict=False):
            if mine != theirs or own is not other:
                same = min(same, mine[0], theirs[0])
        # Behind a cut there is no taking back of the picture, nor of the text that went with it.
        return same if same >= self._least() else 0

    def _least(self) -> int:
        if not self._cuts or not self._spans:
            return 0
        return self._first if self._drops_text else sum(self._spans[-1])

    def select(self, run: Run, pictures: Sequence[ImageFeatures]) -> Run:
        """Return a selection that says of a picture, or of each of its tiles, what it said first.

        Args:
            run: Runs the selection's graph; it is asked about each part of the pictures in their order.
            pictures: Those of the prompt.
        """
        parts = iter([(one.features, number) for one in pictures for number in range(len(one.each))])

        def once(feeds: Mapping[str, Value]) -> Mapping[str, Value]:
            features, number = next(parts)
            key = id(features), number
            if key not in self._chosen:
                self._chosen[key] = features, run(feeds)
            return self._chosen[key][1]

        return once

    def remember(self, run: Run) -> Run:
        """Return the same of the selection of one size, which is asked about whole pictures."""

        def once(feeds: Mapping[str, Value]) -> Mapping[str, Value]:
            key = id(feeds[IMAGE_FEATURES]), 0
            if key not in self._chosen:
                self._chosen[key] = feeds[IMAGE_FEATURES], run(feeds)
            return self._chosen[key][1]

        return once

    @contextmanager
    def lend(self, prompt: Encoded, pictures: Sequence[ImageFeatures]) -> Iterator[KvCache[Value]]:
        """Lend the cache, with what it shares with a prompt; an answer that fails, or is interrupted, leaves nothing.

        Args:
            prompt: As it enters the decoder.
            pictures: Its pictures.

        Raises:
            InputError: Another answer has it.
        """
        if not self._turn.acquire(blocking=False):
            raise InputError("this conversation is answering already: let that answer end first")
        try:
            same = self.shared(prompt, pictures)
            if self._cache is None:
                self._cache = KvCache(self._interface, self._upload, self._download)
            if same:
                self._cache.keep_first(same)
            else:
                self._cache.clear()
                self._first = prompt.length
            del self._ids[same:]
            self._spans, self._features = prompt.spans, _features(pictures)
            yield self._cache
        except GeneratorExit:
            raise  # the reader left between two runs
        except BaseException:
            self.forget()  # what isn't a number would stay in the cache, or half of a run
            raise
        finally:
            self._turn.release()

    def note(self, ids: NDArray[Any]) -> None:
        """Remember which tokens a run has put into the cache, int64 ``[1,n]``."""
        self._ids += ids[0].tolist()


def _features(pictures: Sequence[ImageFeatures]) -> list[Value]:
    """Return of each run of placeholders the picture that it is of."""
    return [one.features for one in pictures for _ in one.each]
