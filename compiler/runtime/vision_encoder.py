"""Run the vision graph of a bundle on pictures, and hold what it leaves against the manifest."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lmmprune.compiler.backends.numpy_types import numpy_type
from lmmprune.compiler.backends.one_row import OneRow
from lmmprune.compiler.backends.session import Session, Value
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.bundle.tile_grids import images_of
from lmmprune.compiler.runtime.image_features import ImageFeatures, check_tokens, counts_of, read_sites
from lmmprune.compiler.runtime.preprocess import Preprocessor
from lmmprune.compiler.runtime.prompt import check_pictures
from lmmprune.compiler.runtime.tile_rule import Picked
from lmmprune.compiler.runtime.tiled_picture import put_together
from lmmprune.errors import BundleError
from lmmprune.names import DYNAMIC_COUNT, IMAGE_FEATURES, PATCHES, RANKING


class VisionEncoder:
    """The vision side of a bundle: pictures to the visual tokens that enter the decoder, or the selection."""

    def __init__(self, bundle: Bundle, preprocessor: Preprocessor, session: Callable[[str], Session]) -> None:
        """Hold the preprocessor against the vision graph.

        Args:
            bundle: An opened bundle.
            preprocessor: Its own.
            session: Component -> its graph.

        Raises:
            BundleError: They don't fit together.
        """
        self._bundle, self._preprocessor, self._session = bundle, preprocessor, session
        self._buckets = [bucket.tokens for bucket in bundle.manifest.buckets]
        self._pixels = bundle.manifest.vision.inputs[0]
        self._checked: set[int] = set()
        if preprocessor.shape is not None:
            self._check_pixels(preprocessor.shape)

    def encode_image(self, image: Image.Image) -> ImageFeatures:
        """Run the vision graph on a picture; see ``Runtime``."""
        if self._bundle.manifest.joint:
            check_pictures(self._bundle.manifest, 1)
        picked = self._preprocessor.pick(image)
        return self._encode([image]) if picked is None else self._encode_tiles(image, picked)

    def encode_images(self, images: Sequence[Image.Image]) -> list[ImageFeatures]:
        """Run the vision graph on the pictures of a prompt; see ``Runtime``."""
        check_pictures(self._bundle.manifest, len(images))
        return [self._encode(images)] if self._bundle.manifest.joint else [self.encode_image(one) for one in images]

    def encode_rows(self, images: Sequence[Image.Image], vision: OneRow) -> list[ImageFeatures]:
        """Run the vision graph once on up to B pictures, each of its own question; times are those of all together.

        Args:
            images: The pictures.
            vision: The graph, of B rows.
        """
        start = time.perf_counter()
        pixels = [self._preprocessor(image) for image in images]
        return self.encode_pixel_rows(pixels, vision, preprocess_ms=(time.perf_counter() - start) * 1e3)

    def encode_pixel_rows(
        self, pixels: Sequence[NDArray[np.float32]], vision: OneRow, *, preprocess_ms: float
    ) -> list[ImageFeatures]:
        """Run the vision graph once on ``pixel_values [1,3,H,W]`` of up to B pictures; see ``Runtime``."""
        start = time.perf_counter()
        for one in pixels:
            self._check_pixels(one.shape)
        kind = numpy_type(self._pixels.dtype)
        feeds = [{self._pixels.name: vision.upload(one.astype(kind, copy=False))} for one in pixels]
        ready = time.perf_counter()
        outputs = vision.run_rows(feeds)
        spent = preprocess_ms + (ready - start) * 1e3, (time.perf_counter() - ready) * 1e3
        return [self._features(vision, row, None, *spent) for row in outputs]

    def _encode_tiles(self, image: Image.Image, picked: Picked) -> ImageFeatures:
        start = time.perf_counter()
        pixels = self._preprocessor(image, picked.grid)
        return self.encode_tiles(pixels, picked, preprocess_ms=(time.perf_counter() - start) * 1e3)

    def encode_tiles(self, pixels: NDArray[np.float32], picked: Picked, *, preprocess_ms: float) -> ImageFeatures:
        """Run the vision graph on each tile of a picture, and on its overview; see ``Runtime``."""
        vision = self._session("vision")
        parts = [self._encode_pixels(tile, 0.0) for tile in np.split(pixels, images_of(picked.grid))]
        return put_together(
            parts,
            picked,
            self._bundle.manifest.picture_tokens,
            upload=vision.upload,
            download=vision.download,
            preprocess_ms=preprocess_ms + sum(part.preprocess_ms for part in parts),
        )

    def _encode(self, images: Sequence[Image.Image]) -> ImageFeatures:
        start = time.perf_counter()
        pixels = [self._preprocessor(image) for image in images]
        for one in pixels:
            self._check_pixels(one.shape)
        whole = pixels[0] if len(pixels) == 1 else np.concatenate(pixels)
        return self._encode_pixels(whole, (time.perf_counter() - start) * 1e3)

    def _encode_pixels(self, pixels: NDArray[np.float32], preprocess_ms: float) -> ImageFeatures:
        """Run the graph on pixels ``[B,3,H,W]`` that took so many milliseconds, those of their upload not counted."""
        start, vision = time.perf_counter(), self._session("vision")
        uploaded = vision.upload(pixels.astype(numpy_type(self._pixels.dtype), copy=False))
        return self.encode_pixels(uploaded, preprocess_ms=preprocess_ms + (time.perf_counter() - start) * 1e3)

    def encode_pixels(self, pixels: Value, *, preprocess_ms: float) -> ImageFeatures:
        """Run the vision graph on ``pixel_values`` that are already a value of its session; see ``Runtime``."""
        vision = self._session("vision")
        start = time.perf_counter()
        outputs = vision.run({self._pixels.name: pixels})
        dynamic_count = None
        if self._buckets:
            dynamic_count = int(vision.download(outputs[DYNAMIC_COUNT])[0])
            tokens = self._size(dynamic_count)
            chosen = self._session(f"bucket_{tokens}")
            outputs = chosen.run({name: outputs[name] for name in (PATCHES, RANKING)})
        spent = (time.perf_counter() - start) * 1e3
        return self._features(vision, outputs, dynamic_count, preprocess_ms, spent)

    def _features(
        self,
        vision: Session,
        outputs: Mapping[str, Value],
        dynamic_count: int | None,
        preprocess_ms: float,
        vision_ms: float,
    ) -> ImageFeatures:
        """Read what the graph, or a bucket's behind it, said of a picture."""
        manifest = self._bundle.manifest
        tokens = manifest.vision_tokens if dynamic_count is None else self._size(dynamic_count)
        kept = None if manifest.kept is None else vision.download(outputs[manifest.kept])[0]
        if tokens not in self._checked:
            check_tokens(self._bundle, vision.download(outputs[IMAGE_FEATURES]).shape[1], kept, tokens)
            self._checked.add(tokens)
        return ImageFeatures(
            features=outputs[IMAGE_FEATURES],
            tokens=tokens,
            dynamic_count=dynamic_count,
            kept=kept,
            counts=counts_of(self._bundle, kept) if manifest.joint and kept is not None else (),
            sites=read_sites(vision, outputs, manifest, in_decoder=False),
            preprocess_ms=preprocess_ms,
            vision_ms=vision_ms,
        )

    def _size(self, dynamic_count: int) -> int:
        """Return the smallest bucket that is large enough, or the largest."""
        return min((size for size in self._buckets if size >= dynamic_count), default=max(self._buckets))

    def _check_pixels(self, shape: tuple[int, ...]) -> None:
        taken = self._pixels.shape
        manifest = self._bundle.manifest
        if shape != ((1, *taken[1:]) if manifest.joint or manifest.batch else taken):
            raise BundleError(
                f"preprocessor.json gives pictures of shape {list(shape)}, the vision graph takes {list(taken)}: export"
                " again"
            )
