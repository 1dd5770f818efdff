"""What of pictures and a prompt enters the decoder: the tokens that stay, and the room that is left for an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from lmmprune.compiler.backends.session import Session
from lmmprune.compiler.bundle.interface import SELECTION
from lmmprune.compiler.bundle.manifest import Manifest
from lmmprune.compiler.runtime.encoded import Encoded, with_image_tokens
from lmmprune.compiler.runtime.held import Held
from lmmprune.compiler.runtime.image_features import ImageFeatures
from lmmprune.compiler.runtime.prompt import Prompter
from lmmprune.compiler.runtime.select_tokens import Entering, Run, among_all_pictures, select_tokens
from lmmprune.compiler.runtime.tiled_picture import parts_of, places_of


class Entrance:
    """Between the vision graph and the decoder of a bundle."""

    def __init__(self, manifest: Manifest, prompter: Prompter, session: Callable[[str], Session]) -> None:
        """Begin.

        Args:
            manifest: The bundle's.
            prompter: Its own.
            session: Component -> its graph.
        """
        self._manifest, self._prompter, self._session = manifest, prompter, session

    @property
    def component(self) -> str:
        """The graph whose memory holds the features that enter the decoder."""
        return "vision" if self._manifest.selection is None else SELECTION

    def kept(self, pictures: Sequence[ImageFeatures]) -> NDArray[np.int64] | None:
        """Return the patches of all pictures that left the vision graph; None where it drops none."""
        counts = [picture.tokens for picture in pictures]
        return among_all_pictures(self._manifest, places_of(pictures, self._manifest.picture_tokens), counts)

    def tokens_before(self, pictures: Sequence[ImageFeatures]) -> int:
        """Return the visual tokens of the unpruned model, of all pictures."""
        if any(one.view is not None for one in pictures):
            return sum(one.view.tokens_before for one in pictures if one.view is not None)
        return sum(map(self._manifest.tokens_of, range(sum(len(one.each) for one in pictures))))

    def shortened(self, prompt: Encoded) -> Encoded:
        """Return a prompt as it enters the decoder: a selection leaves fewer placeholders."""
        return prompt if self._manifest.selection is None else with_image_tokens(prompt, self._manifest.image_tokens)

    def room(self, pictures: Sequence[ImageFeatures], prompt: Encoded) -> int:
        """Return how many new tokens the model's positions leave room for.

        Raises:
            InputError: There is no room for any.
        """
        prompt, kept = self.shortened(prompt), self.kept(pictures)
        if self._manifest.selection is not None:
            # Whichever tokens are chosen, the text behind the picture is numbered alike.
            kept = np.arange(prompt.image_tokens)
        return self._prompter.room(prompt, self._prompter.positions(prompt, kept))

    def select(self, pictures: Sequence[ImageFeatures], prompt: Encoded, held: Held | None = None) -> Entering:
        """Let the bundle's selection choose among the features, if it has one.

        Args:
            pictures: The encoded pictures.
            prompt: With a placeholder for each of their features.
            held: A conversation, in which the first choice stands.
        """
        manifest = self._manifest
        session = self._session("decoder" if manifest.selection is None else SELECTION)
        parts = parts_of(pictures, manifest.picture_tokens, upload=session.upload, download=session.download)

        def of_size(name: str) -> Run:
            run = self._session(name).run
            return run if held is None else held.remember(run)

        return select_tokens(
            manifest,
            session.run if held is None else held.select(session.run, pictures),
            prompt,
            [part.features for part in parts],
            [part.kept for part in parts],
            upload=session.upload,
            download=session.download,
            component=of_size,
        )
