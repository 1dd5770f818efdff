"""Answer several questions together: each row of a bundle's graphs is one of them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lmmprune.compiler.backends.one_row import OneRow
from lmmprune.compiler.backends.session import Session, Value
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.bundle.interface import Batch
from lmmprune.compiler.runtime.answer import Answer
from lmmprune.compiler.runtime.asked import Asked
from lmmprune.compiler.runtime.entrance import Entrance
from lmmprune.compiler.runtime.image_features import ImageFeatures
from lmmprune.compiler.runtime.kv_cache import CacheLender
from lmmprune.compiler.runtime.lockstep import Lockstep, Question, Token, decode_rows
from lmmprune.compiler.runtime.logits import LogitsRules
from lmmprune.compiler.runtime.prompt import Prompter
from lmmprune.compiler.runtime.stop_strings import StopStrings
from lmmprune.compiler.runtime.text_stream import TextStream
from lmmprune.compiler.runtime.vision_encoder import VisionEncoder
from lmmprune.errors import InputError


class Rows:
    """A bundle of B rows, for up to B questions at once; see ``Runtime`` for what each method is for."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        vision: VisionEncoder,
        prompter: Prompter,
        entrance: Entrance,
        rules: LogitsRules,
        session: Callable[[str], Session],
    ) -> None:
        """Begin; the parts are those of the bundle's ``Runtime``."""
        self._bundle, self._vision, self._prompter, self._entrance = bundle, vision, prompter, entrance
        self._rules, self._session = rules, session
        self._caches = CacheLender[Value](bundle.manifest)

    def close(self) -> None:
        """Let go of the caches."""
        self._caches.close()

    def encode_images(self, images: Sequence[Image.Image]) -> list[ImageFeatures]:
        """Run the vision graph on up to B pictures at once."""
        rows = self._bundle.manifest.rows
        if len(images) > rows:
            raise InputError(f"{len(images)} pictures, this bundle takes {rows} at once: give fewer")
        return self._vision.encode_rows(images, self._wide("vision")) if images else []

    def encode_pixels(self, pixels: Sequence[NDArray[np.float32]]) -> list[ImageFeatures]:
        """Run the vision graph on ``pixel_values [1,3,H,W]`` of 1 to B pictures."""
        return self._vision.encode_pixel_rows(pixels, self._wide("vision"), preprocess_ms=0.0)

    def answer(self, asked: Sequence[Asked]) -> list[Answer]:
        """Answer 1 to B questions together."""
        manifest = self._bundle.manifest
        if not 1 <= len(asked) <= manifest.rows:
            raise InputError(f"{len(asked)} questions, this bundle takes 1 to {manifest.rows} at once: ask fewer")
        pictures = self._encode_missing([one.image for one in asked])
        rows = self._questions(asked, pictures)
        lockstep = Lockstep(lambda lockstep: self._steps(rows, lockstep), len(rows))
        return [
            Answer(
                lockstep.row(index),
                TextStream(self._prompter, StopStrings(one.stop)),
                ends=row.ends,
                full="length" if one.max_new_tokens <= row.limit else "positions",
                pictures=[picture],
                kept=self._entrance.kept([picture]),
                prompt=row.prompt,
                tokens_before=manifest.picture_tokens,
            )
            for index, (one, picture, row) in enumerate(zip(asked, pictures, rows, strict=True))
        ]

    def _questions(self, asked: Sequence[Asked], pictures: Sequence[ImageFeatures]) -> list[Question]:
        """Return the rows of the decoder."""
        manifest, entrance = self._bundle.manifest, self._entrance
        prompts = [
            self._prompter.encode(one.prompt, image_tokens=picture.tokens)
            for one, picture in zip(asked, pictures, strict=True)
        ]
        # Those that are too long are refused before a selection runs.
        rooms = [entrance.room([picture], prompt) for picture, prompt in zip(pictures, prompts, strict=True)]
        # The cache of all is as long as the longest prompt's.
        longest = max(entrance.shortened(prompt).length for prompt in prompts)
        together = manifest.max_tokens - longest + (manifest.cache.capacity is not None)
        rows = []
        for one, picture, prompt, room in zip(asked, pictures, prompts, rooms, strict=True):
            entering = entrance.select([picture], prompt)
            rows.append(
                Question(
                    prompt=entering.prompt,
                    features=self._session(entrance.component).download(entering.features),
                    positions=self._prompter.positions(entering.prompt, entering.kept),
                    choose=self._rules.answer(entering.prompt, one.max_new_tokens, one.sampling.start()),
                    limit=min(one.max_new_tokens, room, together),
                    ends=manifest.prompt.eos_token_ids if one.stop_at_eos else (),
                )
            )
        return rows

    def _steps(self, rows: Sequence[Question], lockstep: Lockstep) -> Generator[list[Token | None], None, None]:
        """Yield a token per row for each run of the decoder."""
        decoder = self._wide("decoder").session
        with self._caches.lend(decoder.upload, decoder.download) as cache:
            yield from decode_rows(
                rows,
                self._batch,
                lambda: self._wide("decoder").session,
                cache,
                lockstep.open,
                filler=int(self._bundle.manifest.prompt.image_token_id == 0),
                where=str(self._bundle.path),
            )

    def _encode_missing(self, given: Sequence[Image.Image | ImageFeatures]) -> list[ImageFeatures]:
        """Encode what isn't yet, together."""
        plain = [one for one in given if isinstance(one, Image.Image)]
        encoded = iter(self.encode_images(plain))
        return [one if isinstance(one, ImageFeatures) else next(encoded) for one in given]

    @property
    def _batch(self) -> Batch:
        batch = self._bundle.manifest.batch
        assert batch is not None
        return batch

    def _wide(self, component: str) -> OneRow:
        """Return a graph of B rows."""
        session = self._session(component)
        assert isinstance(session, OneRow)
        return session
