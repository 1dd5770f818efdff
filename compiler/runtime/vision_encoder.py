"""Run the vision graph of a bundle on pictures, and hold what it leaves against the manifest."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lmmprune.compiler.backends.numpy_types import numpy_type
from lmmprune.compiler.backends.one_row import OneRow
from lmmprune.compiler.backends.session import Session, Value
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.bundle.interface import View
from lmmprune.compiler.bundle.manifest import Manifest
from lmmprune.compiler.bundle.tile_grids import images_of, named
from lmmprune.compiler.bundle.video import NO_VIDEO, Video
from lmmprune.compiler.bundle.views import seen_as
from lmmprune.compiler.runtime.choose_view import choose_view
from lmmprune.compiler.runtime.image_features import ImageFeatures, check_tokens, counts_of, read_sites
from lmmprune.compiler.runtime.open_video import Clip
from lmmprune.compiler.runtime.preprocess import Preprocessor
from lmmprune.compiler.runtime.prompt import check_pictures
from lmmprune.compiler.runtime.tile_rule import Picked
from lmmprune.compiler.runtime.tiled_picture import put_together
from lmmprune.errors import BundleError, InputError
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
        self._checked: set[tuple[str, int]] = set()
        self._steps = {view.component: preprocessor.for_view(view) for view in bundle.manifest.sizes}
        if preprocessor.shape is not None:
            self._check_pixels(preprocessor.shape, bundle.manifest)
        for view in bundle.manifest.sizes:
            if (shape := self._steps[view.component].shape) is not None:
                self._check_pixels(shape, seen_as(bundle.manifest, view))
        self._check_grids()

    def encode_image(self, image: Image.Image) -> ImageFeatures:
        """Run the vision graph on a picture; see ``Runtime``."""
        self._refuse_video()
        if self._bundle.manifest.joint:
            check_pictures(self._bundle.manifest, 1)
        picked = self._preprocessor.pick(image)
        return self._encode([image]) if picked is None else self._encode_tiles(image, picked)

    def encode_images(self, images: Sequence[Image.Image]) -> list[ImageFeatures]:
        """Run the vision graph on the pictures of a prompt; see ``Runtime``."""
        self._refuse_video()
        check_pictures(self._bundle.manifest, len(images))
        return [self._encode(images)] if self._bundle.manifest.joint else [self.encode_image(one) for one in images]

    @property
    def video(self) -> Video:
        """What the bundle says of videos.

        Raises:
            InputError: It takes pictures.
        """
        if (video := self._bundle.manifest.video) is None:
            raise InputError(NO_VIDEO)
        return video

    def encode_clip(self, clip: Clip) -> list[ImageFeatures]:
        """Run the vision graph on the views of a video; see ``Runtime``."""
        video, joint = self.video, self._bundle.manifest.joint
        if len(clip.frames) != video.frames:
            raise InputError(f"{len(clip.frames)} frames, this bundle takes {video.takes}: give so many")
        step = video.frames if joint else video.patch
        found = [self._encode(clip.frames[first : first + step]) for first in range(0, video.frames, step)]
        clock = clip.clock(video.patch)
        views = [dataclasses.replace(view, clock=clock) for view in found]
        return views if joint or not video.newline else [*map(self._without_newline, views[:-1]), views[-1]]

    def _without_newline(self, view: ImageFeatures) -> ImageFeatures:
        """Return a view that others follow: its last token is a newline, which only the last one of a video has."""
        vision = self._session("vision")
        rows = np.ascontiguousarray(vision.download(view.features)[:, :-1])
        kept = None if view.kept is None else view.kept[:-1]
        return dataclasses.replace(view, features=vision.upload(rows), tokens=view.tokens - 1, kept=kept)

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
            self._check_pixels(one.shape, self._bundle.manifest)
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
        view = choose_view(self._bundle.manifest, images[0])
        start = time.perf_counter()
        steps = self._preprocessor if view is None else self._steps[view.component]
        pixels = [steps(image) for image in images]
        for one in pixels:
            self._check_pixels(one.shape, seen_as(self._bundle.manifest, view))
        whole = pixels[0] if len(pixels) == 1 else np.concatenate(pixels)
        return self._encode_pixels(whole, (time.perf_counter() - start) * 1e3, view)

    def _encode_pixels(
        self, pixels: NDArray[np.float32], preprocess_ms: float, view: View | None = None
    ) -> ImageFeatures:
        """Run the graph on pixels ``[B,3,H,W]`` that took so many milliseconds, those of their upload not counted."""
        start, vision = time.perf_counter(), self._session("vision" if view is None else view.component)
        uploaded = vision.upload(pixels.astype(numpy_type(self._pixels.dtype), copy=False))
        taken = preprocess_ms + (time.perf_counter() - start) * 1e3
        return self.encode_pixels(uploaded, preprocess_ms=taken, view=view)

    def encode_pixels(self, pixels: Value, *, preprocess_ms: float, view: View | None = None) -> ImageFeatures:
        """Run the vision graph on ``pixel_values`` that are already a value of its session; see ``Runtime``."""
        vision = self._session("vision" if view is None else view.component)
        start = time.perf_counter()
        outputs = vision.run({self._pixels.name: pixels})
        dynamic_count = None
        if self._buckets:
            dynamic_count = int(vision.download(outputs[DYNAMIC_COUNT])[0])
            tokens = self._size(dynamic_count)
            chosen = self._session(f"bucket_{tokens}")
            outputs = chosen.run({name: outputs[name] for name in (PATCHES, RANKING)})
        spent = (time.perf_counter() - start) * 1e3
        return self._features(vision, outputs, dynamic_count, preprocess_ms, spent, view)

    def _features(
        self,
        vision: Session,
        outputs: Mapping[str, Value],
        dynamic_count: int | None,
        preprocess_ms: float,
        vision_ms: float,
        view: View | None = None,
    ) -> ImageFeatures:
        """Read what the graph, or a bucket's behind it, said of a picture."""
        manifest, component = seen_as(self._bundle.manifest, view), "vision" if view is None else view.component
        tokens = manifest.vision_tokens if dynamic_count is None else self._size(dynamic_count)
        kept = None if manifest.kept is None else vision.download(outputs[manifest.kept])[0]
        if (component, tokens) not in self._checked:
            found, before = vision.download(outputs[IMAGE_FEATURES]).shape[1], manifest.tokens_before
            check_tokens(self._bundle, found, kept, tokens, before)
            self._checked.add((component, tokens))
        return ImageFeatures(
            features=outputs[IMAGE_FEATURES],
            tokens=tokens,
            dynamic_count=dynamic_count,
            kept=kept,
            counts=counts_of(self._bundle, kept) if manifest.joint and kept is not None else (),
            sites=read_sites(vision, outputs, manifest, in_decoder=False),
            preprocess_ms=preprocess_ms,
            vision_ms=vision_ms,
            view=view,
        )

    def _refuse_video(self) -> None:
        """Refuse pictures where a video is asked about."""
        if (video := self._bundle.manifest.video) is not None:
            raise InputError(video.no_pictures)

    def _size(self, dynamic_count: int) -> int:
        """Return the smallest bucket that is large enough, or the largest."""
        return min((size for size in self._buckets if size >= dynamic_count), default=max(self._buckets))

    def _check_grids(self) -> None:
        rule, told = self._preprocessor.grids, self._bundle.manifest.tile_grids
        cut, written = set(rule.grids) if rule else set(), set(told.grids) if told else set()
        if cut != written:
            names = [", ".join(map(named, sorted(grids))) or "no tiles" for grids in (cut, written)]
            raise BundleError(
                f"preprocessor.json cuts pictures into {names[0]}, the manifest's prompts are of {names[1]}: export"
                " again"
            )

    def _check_pixels(self, shape: tuple[int, ...], manifest: Manifest) -> None:
        taken = manifest.vision.inputs[0].shape
        one = manifest.joint or manifest.video is not None or manifest.batch is not None
        if shape != ((1, *taken[1:]) if one else taken):
            raise BundleError(
                f"preprocessor.json gives pictures of shape {list(shape)}, the vision graph takes {list(taken)}: export"
                " again"
            )
