"""Answer questions about pictures with a bundle: vision graph once, prefill, then token by token with a cache."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lmmprune.compiler.backends.one_row import OneRow
from lmmprune.compiler.backends.open_sessions import open_sessions
from lmmprune.compiler.backends.session import Session, Value
from lmmprune.compiler.bundle.bundle import PREPROCESSOR, TOKENIZER, Bundle
from lmmprune.compiler.bundle.interface import SELECTION
from lmmprune.compiler.bundle.views import seen_as
from lmmprune.compiler.runtime.answer import Answer, FinishReason
from lmmprune.compiler.runtime.asked import Asked
from lmmprune.compiler.runtime.encoded import Encoded
from lmmprune.compiler.runtime.entrance import Entrance
from lmmprune.compiler.runtime.feature_cache import FeatureCache
from lmmprune.compiler.runtime.held import Held
from lmmprune.compiler.runtime.image_features import (
    ImageFeatures,
    SiteTokens,
    as_pictures,
    read_sites,
    views_of,
)
from lmmprune.compiler.runtime.kv_cache import CacheLender, KvCache
from lmmprune.compiler.runtime.logits import LogitsRules
from lmmprune.compiler.runtime.open_video import Clip, load_clip
from lmmprune.compiler.runtime.prefill import Piece, check_chunk, check_engine, pieces_of
from lmmprune.compiler.runtime.preprocess import Preprocessor
from lmmprune.compiler.runtime.prompt import Prompter, check_pictures
from lmmprune.compiler.runtime.rows import Rows
from lmmprune.compiler.runtime.sampling import GREEDY, Picks
from lmmprune.compiler.runtime.select_tokens import Entering
from lmmprune.compiler.runtime.stop_strings import StopStrings
from lmmprune.compiler.runtime.text_stream import TextStream
from lmmprune.compiler.runtime.tile_rule import Picked
from lmmprune.compiler.runtime.tiled_picture import grids_of, join_sites, places_of
from lmmprune.compiler.runtime.vision_encoder import VisionEncoder
from lmmprune.errors import BundleError, InputError
from lmmprune.names import IMAGE_FEATURES, INPUT_IDS, LOGITS, POSITION_IDS


class Runtime:
    """A bundle loaded for answering. Threads may share it: each answer has a key/value cache of its own.

    Example::

        runtime = Runtime(Bundle.open("out"))
        for piece in runtime.answer(load_image("cat.jpg"), "What is this?"):
            print(piece, end="")
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        sessions: Mapping[str, Session] | None = None,
        in_place: bool = True,
        image_cache: int = 0,
        prefill_chunk: int | None = None,
    ) -> None:
        """Load the graphs in the back end of the bundle's target.

        Args:
            bundle: An opened bundle.
            threads: Threads within an operator, where the CPU computes; None leaves it to the back end.
            sessions: Component -> its graph, where something else runs them.
            in_place: False where such a session gives every output memory of its own.
            image_cache: Bytes of visual tokens that are kept, for pictures that come again.
            prefill_chunk: Tokens of a prompt that the decoder takes at once; None: all of them.

        Raises:
            InputError: The bundle's prompts can't be taken in chunks.
            TargetError: The bundle is for a device that isn't here.
            BundleError: Its files or its engines can't be used.
            MissingExtraError: The back end isn't installed.
        """
        self.bundle = bundle
        manifest = bundle.manifest
        check_chunk(manifest, prefill_chunk)
        self._chunk = prefill_chunk
        self.image_cache = FeatureCache(manifest, image_cache)
        self._sessions: Mapping[str, Session] | None = sessions or open_sessions(bundle, threads=threads)
        if manifest.batch is not None:
            self._sessions = {
                component: OneRow(session, manifest.graphs[component], 1 if component == SELECTION else manifest.rows)
                for component, session in self._sessions.items()
            }
        self.preprocessor = Preprocessor.load(bundle.file(PREPROCESSOR))
        self.prompter = Prompter(manifest, bundle.file(TOKENIZER))
        self._rules = LogitsRules(manifest)
        self._caches = CacheLender[Value](manifest, in_place=in_place)
        self._vision = VisionEncoder(bundle, self.preprocessor, self._session)
        self._entrance = Entrance(manifest, self.prompter, self._session)
        self._rows: Rows | None = None
        if manifest.batch is not None:
            self._rows = Rows(
                bundle,
                vision=self._vision,
                prompter=self.prompter,
                entrance=self._entrance,
                rules=self._rules,
                session=self._session,
            )

    def close(self) -> None:
        """Let go of graphs and caches; answers that are under way end with an ``InputError``."""
        self._sessions = None
        self._caches.close()
        self.image_cache.clear()
        if self._rows is not None:
            self._rows.close()

    def _session(self, component: str) -> Session:
        """Return a graph.

        Raises:
            InputError: All are closed.
        """
        if self._sessions is None:
            raise InputError(f"the model of '{self.bundle.path}' is closed: load it again")
        return self._sessions[component]

    def encode_image(self, image: Image.Image) -> ImageFeatures:
        """Run the vision graph on a picture.

        Raises:
            InputError: The picture can't be resized for the model, or the bundle sees several together.
            BundleError: As ``encode_pixels``.
        """
        (found,) = self.image_cache.encode([image], lambda images: [self._vision.encode_image(images[0])])
        return found

    def encode_images(self, images: Sequence[Image.Image]) -> list[ImageFeatures]:
        """Run the vision graph on the pictures of a prompt: on each, or on all together where the bundle does that.

        Raises:
            InputError: There are too many, or as ``encode_image``.
            BundleError: As ``encode_pixels``.
        """
        if self.bundle.manifest.joint:
            return self.image_cache.encode(images, self._vision.encode_images)
        check_pictures(self.bundle.manifest, len(images))
        return [self.encode_image(image) for image in images]

    def encode_clip(self, clip: Clip) -> list[ImageFeatures]:
        """Run the vision graph on the frames of a video: on each view, or on all together where the bundle does that.

        Raises:
            InputError: The bundle takes pictures, or another number of frames, or as ``encode_image``.
            BundleError: As ``encode_pixels``.
        """
        return self._vision.encode_clip(clip)

    def encode_video(self, path: Path | str) -> list[ImageFeatures]:
        """Read a video and run the vision graph on its frames, as ``encode_clip``.

        Raises:
            InputError: It can't be read, or has too few frames, or as ``encode_clip``.
            MissingExtraError: PyAV isn't installed.
        """
        start = time.perf_counter()
        clip = load_clip(path, self._vision.video)
        reading = (time.perf_counter() - start) * 1e3
        first, *others = self.encode_clip(clip)
        return [dataclasses.replace(first, preprocess_ms=first.preprocess_ms + reading), *others]

    def encode_pixels(self, pixels: Value, *, preprocess_ms: float) -> ImageFeatures:
        """Run the vision graph on ``pixel_values`` that are already a value of its session.

        Raises:
            BundleError: On the first call: the graph doesn't leave as many tokens as the manifest says.
        """
        return self._vision.encode_pixels(pixels, preprocess_ms=preprocess_ms)

    def encode_tiles(self, pixels: NDArray[np.float32], picked: Picked, *, preprocess_ms: float) -> ImageFeatures:
        """Run the vision graph on the tiles of a picture ``[B,3,H,W]``, cut into that grid by the bundle's steps.

        Raises:
            BundleError: As ``encode_pixels``.
        """
        return self._vision.encode_tiles(pixels, picked, preprocess_ms=preprocess_ms)

    def hold(self) -> Held:
        """Return what keeps a conversation's beginning in the decoder, for ``answer``.

        Raises:
            InputError: The bundle's engines don't take several tokens behind others.
        """
        check_engine(self.bundle.manifest, "keeping what was read (--no-reuse, reuse=False goes without)")
        decoder = self._session("decoder")
        return Held(self.bundle.manifest, decoder.upload, decoder.download)

    def answer(
        self,
        image: Clip | Image.Image | ImageFeatures | Sequence[Image.Image | ImageFeatures],
        prompt: str | Sequence[str],
        max_new_tokens: int = 128,
        *,
        stop_at_eos: bool = True,
        sampling: Picks = GREEDY,
        stop: str | Sequence[str] = (),
        held: Held | None = None,
        placed: Sequence[int] | None = None,
    ) -> Answer:
        """Answer a question about a picture, or about several.

        Args:
            image: The picture, or what ``encode_image`` returned for it; or several of either, in the prompt's order.
                Or the frames of a video, or what ``encode_clip`` returned for them.
            prompt: The bare question; the bundle's template goes around it. Or a conversation: a question, its answer,
                the next question, ... With several pictures ``<image>`` marks the place of each; without, all of them
                stand where the template has its picture.
            max_new_tokens: Stop after so many tokens; 0 gives no text, and runs no decoder.
            stop_at_eos: False goes on to ``max_new_tokens`` (for measuring).
            sampling: How tokens are chosen.
            stop: Texts that end the answer; it is cut before the one that is whole first.
            held: Of ``hold``: what it holds of the prompt isn't read again, and it holds prompt and answer afterwards.
            placed: How many of the pictures came with each question of a conversation; None: all with the first one.

        Raises:
            InputError: The prompt is too long, a picture or a setting can't be used, or there are too many pictures, or
                not as many as the prompt has places.
        """
        if max_new_tokens < 0:
            raise InputError(f"max_new_tokens is {max_new_tokens}: expected 0 or more")
        texts = StopStrings(stop)
        if isinstance(image, Clip):
            image = self.encode_clip(image)
        pictures = self.encode_missing([image] if isinstance(image, Image.Image | ImageFeatures) else image)
        counts = [count for picture in pictures for count in picture.each]
        self._session("decoder")
        views, grids, clock = views_of(pictures), grids_of(pictures), pictures[0].clock
        encoded = self.prompter.encode(
            prompt, image_tokens=counts, placed=placed, views=views, grids=grids, clock=clock
        )
        # Refuse now, not when the first piece is asked for.
        full: FinishReason = "length" if max_new_tokens <= self._entrance.room(pictures, encoded) else "positions"
        return Answer(
            self.generate(pictures, encoded, max_new_tokens, sampling, held),
            TextStream(self.prompter, texts),
            ends=self.bundle.manifest.prompt.eos_token_ids if stop_at_eos else (),
            full=full,
            pictures=pictures,
            kept=self._entrance.kept(pictures),
            prompt=self._entrance.shortened(encoded),
            tokens_before=self._entrance.tokens_before(pictures),
            reused=0 if held is None else held.shared(self._entrance.shortened(encoded), pictures),
        )

    def encode_batch(self, images: Sequence[Image.Image]) -> list[ImageFeatures]:
        """Run the vision graph on up to B pictures at once, each for questions of its own.

        Raises:
            InputError: As ``encode_image``, or there are too many, or the bundle answers one question at a time.
        """
        return self._of_rows().encode_images(images)

    def encode_pixel_rows(self, pixels: Sequence[NDArray[np.float32]]) -> list[ImageFeatures]:
        """Run the vision graph on ``pixel_values [1,3,H,W]`` of 1 to B pictures, each for questions of its own.

        Raises:
            InputError: The bundle answers one question at a time.
        """
        return self._of_rows().encode_pixels(pixels)

    def answer_batch(self, asked: Sequence[Asked]) -> list[Answer]:
        """Answer several questions together, each about its own picture: each row of the graphs is one of them.

        The answers are those that ``answer`` gives to each, whatever the others are. They are generated while one of
        them is read, the others' along with it; their times are those of the whole batch.

        Args:
            asked: 1 to B questions; with fewer than B, copies of the last fill the graphs up, and are dropped.

        Raises:
            InputError: The bundle answers one question at a time, or there are too many; or as ``answer``.
        """
        return self._of_rows().answer(asked)

    def _of_rows(self) -> Rows:
        if self._rows is None:
            raise InputError("this bundle answers one question at a time: export with --batch B")
        return self._rows

    def encode_missing(self, given: Sequence[Image.Image | ImageFeatures]) -> list[ImageFeatures]:
        """Run the vision graph on those pictures of a prompt that it hasn't seen yet; errors as ``encode_images``."""
        check_pictures(
            self.bundle.manifest, sum(one.pictures if isinstance(one, ImageFeatures) else 1 for one in given)
        )
        if self.bundle.manifest.joint:
            plain = [one for one in given if isinstance(one, Image.Image)]
            return self.encode_images(plain) if plain else [one for one in given if isinstance(one, ImageFeatures)]
        return [one if isinstance(one, ImageFeatures) else self.encode_image(one) for one in given]

    def prefill_sites(self, visual: ImageFeatures, prompt: Encoded) -> dict[str, SiteTokens]:
        """Run the prefill once and return what leaves each site in the decoder that removes visual tokens.

        Args:
            visual: The encoded picture.
            prompt: The tokenized prompt.

        Returns:
            By the sites' names, in the data's order; ``kept`` are patches of the picture, as in ``visual.sites``.
        """
        manifest = seen_as(self.bundle.manifest, visual.view)
        entering = self._entrance.select([visual], prompt)
        decoder = self._session("decoder")
        found = [read_sites(decoder, said, manifest, in_decoder=True) for said in entering.outputs or [{}]]
        if manifest.decoder_sites:
            with self._caches.lend(decoder.upload, decoder.download) as cache:
                outputs = {}
                for piece in self._pieces(decoder, entering):
                    outputs = dict(self._run(piece, cache))
            inside = read_sites(decoder, outputs, manifest, in_decoder=True)
            found[0] |= {
                name: dataclasses.replace(site, kept=entering.among_all(site.kept)) for name, site in inside.items()
            }
        # They count the tokens that left the vision graph. Without a selection nothing was said of each tile.
        places = places_of([visual], manifest.picture_tokens)[: len(found)]
        whole = [
            {
                name: dataclasses.replace(site, kept=site.kept if own is None else own[site.kept])
                for name, site in sites.items()
            }
            for sites, own in zip(found, places, strict=True)
        ]
        return join_sites(whole, manifest.picture_tokens)

    def generate(
        self,
        visual: ImageFeatures | Sequence[ImageFeatures],
        prompt: Encoded,
        limit: int,
        sampling: Picks = GREEDY,
        held: Held | None = None,
    ) -> Generator[tuple[int, float], None, None]:
        """Yield token ids, each with the milliseconds it took; the first is the prefill.

        Args:
            visual: The encoded picture, or several.
            prompt: The tokenized prompt, with a placeholder for each of their features.
            limit: Number of tokens; fewer when the model's positions end.
            sampling: How they are chosen.
            held: Of ``hold``: the beginning that it holds isn't read again.

        Raises:
            BundleError: The logits aren't numbers.
            InputError: The model was closed.
        """
        pictures = as_pictures(visual)
        steps = min(limit, self._entrance.room(pictures, prompt))
        if not steps:
            return
        start = time.perf_counter()
        entering = self._entrance.select(pictures, prompt, held)
        spent = (time.perf_counter() - start) * 1e3
        choose, decoder = self._rules.answer(entering.prompt, limit, sampling.start()), self._session("decoder")
        lent = self._caches.lend(decoder.upload, decoder.download)
        if held is not None:
            lent = held.lend(entering.prompt, pictures)
        with lent as cache:
            start = time.perf_counter()
            *early, piece = self._pieces(decoder, entering, begin=cache.tokens)
            for before in early:
                self._run(before, cache, held)
            for _ in range(steps):
                logits = decoder.download(self._run(piece, cache, held)[LOGITS])[0, -1]
                token = choose(logits)
                spent += (time.perf_counter() - start) * 1e3
                if not np.isfinite(logits[token]):
                    raise BundleError(
                        f"the decoder of '{self.bundle.path}' gives {logits[token]} instead of logits: "
                        f"the model overflows in {self.bundle.manifest.precision.dtype}; export with --dtype float32"
                    )
                yield token, spent
                start, spent = time.perf_counter(), 0.0
                piece = dataclasses.replace(
                    piece, ids=np.array([[token]], np.int64), positions=piece.positions[..., -1:] + 1
                )

    def _pieces(self, decoder: Session, entering: Entering, *, begin: int = 0) -> list[Piece]:
        """Return the runs of the decoder for a prompt of which the cache holds the beginning."""
        return pieces_of(
            self.bundle.manifest,
            entering,
            self.prompter.positions(entering.prompt, entering.kept),
            begin=begin,
            chunk=self._chunk,
            upload=decoder.upload,
            download=decoder.download,
        )

    def _run(self, piece: Piece, cache: KvCache[Value], held: Held | None = None) -> Mapping[str, Value]:
        """Run the decoder on some tokens, which enter the cache."""
        decoder = self._session("decoder")
        feeds = {
            INPUT_IDS: decoder.upload(piece.ids),
            IMAGE_FEATURES: piece.features,
            POSITION_IDS: decoder.upload(piece.positions),
        }
        outputs = decoder.run({**feeds, **cache.feeds(piece.ids.shape[1])})
        cache.take(outputs, tokens=piece.ids.shape[1])
        if held is not None:
            held.note(piece.ids)
        return outputs
