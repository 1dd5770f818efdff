"""Between vision graph and decoder: where a bundle has a selection, choose among the features for one prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmmprune.compiler.backends.session import Value
from lmmprune.compiler.bundle.interface import Interface
from lmmprune.compiler.runtime.prompt import Encoded
from lmmprune.errors import BundleError
from lmmprune.names import IMAGE_FEATURES, INPUT_IDS, SELECTED, kept_at

SITE = "llm_input_0"

Run = Callable[[Mapping[str, Value]], Mapping[str, Value]]


@dataclass(frozen=True, kw_only=True)
class Entering:
    """What enters the decoder.

    Attributes:
        prompt: With a placeholder per feature.
        features: ``[1,K,C]``, a value of the back end.
        kept: int64 ``[K]``, the patch in whose place each feature is; None where none was dropped.
        chosen: int64 ``[K]``, its place among the features that left the vision graph; None without a selection.
        outputs: What the selection said; none without one.
    """

    prompt: Encoded
    features: Value
    kept: NDArray[np.int64] | None
    chosen: NDArray[np.int64] | None = None
    outputs: Mapping[str, Value] = field(default_factory=dict)

    def among_all(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return places among what left the vision graph, of places among what entered the decoder."""
        return places if self.chosen is None else self.chosen[places]


def select_tokens(
    interface: Interface,
    run: Run,
    prompt: Encoded,
    features: Value,
    kept: NDArray[np.int64] | None,
    *,
    upload: Callable[[NDArray[Any]], Value] = lambda array: array,
    download: Callable[[Value], NDArray[Any]] = lambda value: value,
) -> Entering:
    """Run the selection of a bundle, if it has one.

    Args:
        interface: The bundle's.
        run: Runs the selection's graph.
        prompt: The question, with a placeholder for each token that leaves the vision graph.
        features: These tokens, ``[1,N,C]``.
        kept: int64 ``[N]``, the patch in whose place each is; None where none was dropped.
        upload: Makes a value of the back end.
        download: Reads one.

    Raises:
        BundleError: It doesn't keep as many tokens as the manifest says, or one of them twice.
    """
    if interface.selection is None:
        return Entering(prompt=prompt, features=features, kept=kept)
    outputs = run({INPUT_IDS: upload(prompt.input_ids), IMAGE_FEATURES: features})
    chosen: NDArray[np.int64] = download(outputs[kept_at(SITE)])[0]
    count = interface.image_tokens
    if len(chosen) != count or len(set(chosen.tolist())) != count or chosen.min() < 0:
        raise BundleError(
            f"the selection keeps {len(set(chosen.tolist()))} of {interface.vision_tokens} tokens, the manifest says"
            f" {count}: export again"
        )
    return Entering(
        prompt=with_image_tokens(prompt, count),
        features=outputs[SELECTED],
        kept=chosen if kept is None else kept[chosen],
        chosen=chosen,
        outputs=outputs,
    )


def with_image_tokens(prompt: Encoded, count: int) -> Encoded:
    """Return a prompt with another number of placeholders, all of them the same as those that it has."""
    ids, start = prompt.input_ids, prompt.image_start
    image = np.repeat(ids[:, start : start + 1], count, axis=1)
    ids = np.concatenate([ids[:, :start], image, ids[:, start + prompt.image_tokens :]], axis=1)
    return dataclasses.replace(prompt, input_ids=ids, image_tokens=count)
