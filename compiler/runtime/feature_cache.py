"""Remember what the vision graph made of pictures, for those that come again: by content, the latest ones."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from PIL import Image

from lmmprune.compiler.bundle.interface import VALUE_BYTES, Interface
from lmmprune.compiler.runtime.image_features import ImageFeatures
from lmmprune.compiler.runtime.open_picture import to_rgb
from lmmprune.names import IMAGE_FEATURES

Encode = Callable[[Sequence[Image.Image]], list[ImageFeatures]]


class FeatureCache:
    """The visual tokens of the pictures that were asked about last, up to so many bytes; threads may share it.

    Attributes:
        hits: How often the vision graph didn't run, since the beginning.
        bytes: What is kept now.
    """

    def __init__(self, interface: Interface, most: int) -> None:
        """Begin empty.

        Args:
            interface: The bundle's.
            most: Bytes that may be kept; what is larger isn't. 0: nothing is kept, and no picture is looked at.
        """
        features = next(tensor for tensor in interface.decoder.inputs if tensor.name == IMAGE_FEATURES)
        width = math.prod(size for size in features.shape[2:] if isinstance(size, int))
        self._row = width * VALUE_BYTES[features.dtype]
        self._most, self._lock = most, threading.Lock()
        self._kept: OrderedDict[bytes, list[ImageFeatures]] = OrderedDict()
        self.hits = self.bytes = 0

    def encode(self, images: Sequence[Image.Image], encode: Encode) -> list[ImageFeatures]:
        """Return what the vision graph makes of pictures: what it made of the same ones, or what it makes now.

        Of features that were kept, the milliseconds are those of finding them.

        Args:
            images: The pictures of one run.
            encode: Runs the vision graph.
        """
        if not self._most:
            return encode(images)
        start = time.perf_counter()
        key = b"".join(map(content_hash, images))
        with self._lock:
            if known := self._kept.get(key):
                self._kept.move_to_end(key)
                self.hits += 1
        spent = (time.perf_counter() - start) * 1e3
        if known:
            return [_found(one, spent) for one in known]
        made = encode(images)
        size = self._size(made)
        with self._lock:
            if key not in self._kept and size <= self._most:
                self._kept[key] = made
                self.bytes += size
                while self.bytes > self._most:
                    _, oldest = self._kept.popitem(last=False)
                    self.bytes -= self._size(oldest)
        return made

    def clear(self) -> None:
        """Forget all pictures."""
        with self._lock:
            self._kept.clear()
            self.bytes = 0

    def _size(self, made: Sequence[ImageFeatures]) -> int:
        return sum(one.tokens * self._row + (0 if one.kept is None else one.kept.nbytes) for one in made)


def content_hash(image: Image.Image) -> bytes:
    """Return 32 bytes that tell pictures apart by what the model is shown: size and colours of every pixel."""
    seen = to_rgb(image)
    told = hashlib.blake2b(repr(seen.size).encode(), digest_size=32)
    told.update(seen.tobytes())
    return told.digest()


def _found(features: ImageFeatures, spent: float) -> ImageFeatures:
    return dataclasses.replace(features, preprocess_ms=spent, vision_ms=0.0)
