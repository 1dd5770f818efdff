"""Answer questions about pictures with a bundle: vision graph once, prefill, then greedy decoding with a cache."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lmmprune.compiler.backends.numpy_types import numpy_type
from lmmprune.compiler.backends.open_sessions import open_sessions
from lmmprune.compiler.backends.session import Session, Value
from lmmprune.compiler.bundle.bundle import PREPROCESSOR, TOKENIZER, Bundle
from lmmprune.compiler.runtime.answer import Answer, ImageFeatures, SiteTokens
from lmmprune.compiler.runtime.kv_cache import KvCache
from lmmprune.compiler.runtime.logits import LogitsRules
from lmmprune.compiler.runtime.preprocess import Preprocessor
from lmmprune.compiler.runtime.prompt import Encoded, Prompter
from lmmprune.errors import BundleError


class Runtime:
    """A bundle loaded for answering, one picture and one question at a time.

    Example::

        runtime = Runtime(Bundle.open("out"))
        for piece in runtime.answer(load_image("cat.jpg"), "What is this?"):
            print(piece, end="")
    """

    def __init__(
        self, bundle: Bundle, *, threads: int | None = None, sessions: Mapping[str, Session] | None = None
    ) -> None:
        """Load the graphs in the back end of the bundle's target.

        Args:
            bundle: An opened bundle.
            threads: Threads within an operator, where the CPU computes; None leaves it to the back end.
            sessions: Component -> its graph, where something else runs them.

        Raises:
            TargetError: The bundle is for a device that isn't here.
            BundleError: Its files or its engines can't be used.
            MissingExtraError: The back end isn't installed.
        """
        self.bundle = bundle
        manifest = bundle.manifest
        sessions = open_sessions(bundle, threads=threads) if sessions is None else sessions
        self.preprocessor = Preprocessor.load(bundle.file(PREPROCESSOR))
        self.prompter = Prompter(manifest, bundle.file(TOKENIZER))
        self._vision, self._decoder = sessions["vision"], sessions["decoder"]
        self._buckets = {bucket.tokens: sessions[bucket.component] for bucket in manifest.buckets}
        self._rules = LogitsRules(manifest)
        self._checked: set[int] = set()
        self._spare: KvCache[Value] | None = None
        self._inputs = {tensor.name: tensor for tensor in manifest.decoder.inputs}
        self._pixels = manifest.vision.inputs[0]

    def encode_image(self, image: Image.Image) -> ImageFeatures:
        """Run the vision graph on a picture.

        Raises:
            InputError: The picture can't be resized for the model.
            BundleError: As ``look_at``.
        """
        start = time.perf_counter()
        pixels = self.preprocessor(image)
        if pixels.shape != self._pixels.shape:
            raise BundleError(
                f"preprocessor.json gives pictures of shape {list(pixels.shape)}, the vision graph takes "
                f"{list(self._pixels.shape)}: export again"
            )
        uploaded = self._vision.upload(pixels.astype(numpy_type(self._pixels.dtype), copy=False))
        return self.encode_pixels(uploaded, preprocess_ms=(time.perf_counter() - start) * 1e3)

    def encode_pixels(self, pixels: Value, *, preprocess_ms: float) -> ImageFeatures:
        """Run the vision graph on ``pixel_values`` that are already a value of its session.

        Raises:
            BundleError: On the first call: the graph doesn't leave as many tokens as the manifest says.
        """
        start = time.perf_counter()
        outputs = self._vision.run({self._pixels.name: pixels})
        dynamic_count = None
        if self._buckets:
            dynamic_count = int(self._vision.download(outputs["dynamic_count"])[0])
            outputs = self._buckets[self._size(dynamic_count)].run(
                {name: outputs[name] for name in ("patches", "ranking")}
            )
        end = time.perf_counter()
        name = self.bundle.manifest.kept
        kept = None if name is None else self._vision.download(outputs[name])[0]
        tokens = self.bundle.manifest.image_tokens
        if self._buckets:
            tokens = self._size(dynamic_count or 0)
        if tokens not in self._checked:
            self._check(self._vision.download(outputs["image_features"]).shape, kept, tokens)
            self._checked.add(tokens)
        return ImageFeatures(
            features=outputs["image_features"],
            tokens=tokens,
            dynamic_count=dynamic_count,
            kept=kept,
            sites=self._sites(self._vision, outputs, in_decoder=False),
            preprocess_ms=preprocess_ms,
            vision_ms=(end - start) * 1e3,
        )

    def _size(self, dynamic_count: int) -> int:
        """Return the smallest bucket that is large enough, or the largest."""
        return min((size for size in self._buckets if size >= dynamic_count), default=max(self._buckets))

    def answer(
        self, image: Image.Image | ImageFeatures, prompt: str, max_new_tokens: int = 128, *, stop_at_eos: bool = True
    ) -> Answer:
        """Answer a question about a picture, greedily.

        Args:
            image: The picture, or what ``encode_image`` returned for it.
            prompt: The bare question; the bundle's template goes around it.
            max_new_tokens: Stop after so many tokens.
            stop_at_eos: False goes on to ``max_new_tokens`` (for measuring).

        Raises:
            InputError: The prompt is too long, or the picture can't be used.
        """
        visual = image if isinstance(image, ImageFeatures) else self.encode_image(image)
        encoded = self.prompter.encode(prompt, image_tokens=visual.tokens)
        self.prompter.positions(encoded, visual.kept)  # refuse now, not when the first piece is asked for
        return Answer(self, visual, encoded, max_new_tokens, stop_at_eos)

    def room(self, visual: ImageFeatures, prompt: Encoded) -> int:
        """Return how many new tokens the model's positions leave room for."""
        return self.prompter.room(prompt, self.prompter.positions(prompt, visual.kept))

    def prefill_sites(self, visual: ImageFeatures, prompt: Encoded) -> dict[str, SiteTokens]:
        """Run the prefill once and return what leaves each site in the decoder that removes visual tokens.

        Args:
            visual: The encoded picture.
            prompt: The tokenized prompt.

        Returns:
            By the sites' names, in the data's order; ``kept`` are patches of the picture, as in ``visual.sites``.
        """
        positions = self.prompter.positions(prompt, visual.kept)
        with self._cache() as cache:
            outputs = self._decoder.run(self._feeds(visual, prompt.input_ids, positions, cache))
        found = self._sites(self._decoder, outputs, in_decoder=True)
        if visual.kept is None:
            return found
        # The decoder counts the image tokens that entered it.
        return {name: dataclasses.replace(site, kept=visual.kept[site.kept]) for name, site in found.items()}

    def generate(self, visual: ImageFeatures, prompt: Encoded, limit: int) -> Iterator[tuple[int, float]]:
        """Yield token ids, each with the milliseconds it took; the first is the prefill.

        Args:
            visual: The encoded picture.
            prompt: The tokenized prompt.
            limit: Number of tokens; fewer when the model's positions end.

        Raises:
            BundleError: The logits aren't numbers.
        """
        positions = self.prompter.positions(prompt, visual.kept)
        ids, choose = prompt.input_ids, self._rules.answer(prompt, limit)
        with self._cache() as cache:
            for _ in range(min(limit, self.room(visual, prompt))):
                start = time.perf_counter()
                outputs = self._decoder.run(self._feeds(visual, ids, positions, cache))
                logits = self._decoder.download(outputs["logits"])[0, -1]
                token = choose(logits)
                spent = (time.perf_counter() - start) * 1e3
                if not np.isfinite(logits[token]):
                    raise BundleError(
                        f"the decoder of '{self.bundle.path}' gives {logits[token]} instead of logits: "
                        f"the model overflows in {self.bundle.manifest.precision.dtype}; export with --dtype float32"
                    )
                cache.take(outputs, tokens=ids.shape[1])
                yield token, spent
                ids = np.array([[token]], np.int64)
                positions = positions[..., -1:] + 1

    @contextmanager
    def _cache(self) -> Iterator[KvCache[Value]]:
        """Lend an empty cache: that of the answer before, unless it is still being given, or failed.

        The first touch of memory is slow (a second and more per GiB in a virtual machine), and each prefill would pay
        for it. Engines find the addresses that their CUDA graphs were recorded with.
        """
        cache = self._spare or KvCache(self.bundle.manifest, self._decoder.upload)
        self._spare, sound = None, True
        try:
            yield cache
        except Exception:
            sound = False  # what isn't a number would stay in it
            raise
        finally:
            if sound:
                cache.clear()
                self._spare = cache

    def _feeds(
        self, visual: ImageFeatures, ids: NDArray[np.int64], positions: NDArray[np.int64], cache: KvCache[Value]
    ) -> dict[str, Value]:
        return {
            "input_ids": self._decoder.upload(ids),
            "image_features": visual.features,
            "position_ids": self._decoder.upload(positions),
            **cache.feeds(),
        }

    def _sites(self, session: Session, outputs: Mapping[str, Value], *, in_decoder: bool) -> dict[str, SiteTokens]:
        """Read what the graph says of its sites; one that removes no visual token has nothing to say."""
        found = {}
        for stage in self.bundle.manifest.schedule:
            if stage.in_decoder != in_decoder or stage.kept is None or stage.tokens_out == stage.tokens_in:
                continue
            kept = session.download(outputs[stage.kept])[0]
            flags = outputs.get(f"received.{stage.site}")
            received = np.zeros(len(kept), bool) if flags is None else session.download(flags)[0].astype(bool)
            found[stage.site] = SiteTokens(tokens_in=stage.tokens_in, kept=kept, received=received)
        return found

    def _check(self, features: tuple[int, ...], kept: NDArray[np.int64] | None, tokens: int) -> None:
        """Hold the first output of the vision graph against the manifest's promise."""
        manifest = self.bundle.manifest
        for found in (features[1], features[1] if kept is None else len(kept)):
            if found != tokens:
                raise BundleError(
                    f"the vision graph of '{self.bundle.path}' leaves {found} tokens, its manifest says "
                    f"{tokens} of {manifest.tokens_before}: export again"
                )
        if kept is None:
            return
        # -1 marks a token that has the place of no patch, as a sum of dropped ones.
        places = kept[kept >= 0]
        if (kept < -1).any() or (places >= manifest.tokens_before).any() or len(set(places.tolist())) < len(places):
            raise BundleError(
                f"the vision graph of '{self.bundle.path}' gives kept indices that aren't distinct patches of "
                f"0..{manifest.tokens_before - 1}: export again"
            )
