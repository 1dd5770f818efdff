"""Between vision graph and decoder: choose among each picture's features where a bundle does, and put them together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmmprune.compiler.backends.session import Value
from lmmprune.compiler.bundle.interface import Interface
from lmmprune.compiler.runtime.encoded import Encoded, with_image_tokens, with_one_picture
from lmmprune.errors import BundleError
from lmmprune.names import IMAGE_FEATURES, INPUT_IDS, SELECTED, kept_at

SITE = "llm_input_0"

Run = Callable[[Mapping[str, Value]], Mapping[str, Value]]
Places = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Entering:
    """What enters the decoder.

    Attributes:
        prompt: With a placeholder per feature.
        features: ``[1,K,C]``, a value of the back end; with several pictures ``[1,images*K,C]``.
        kept: int64 ``[K]``, the patch in whose place each feature is, those of picture i from i * N on; None where none
            was dropped.
        chosen: For each picture int64 ``[K]``, its features' places among those that left the vision graph; none
            without a selection.
        outputs: What the selection said of each picture; none without one.
    """

    prompt: Encoded
    features: Value
    kept: Places | None
    chosen: Sequence[Places] = ()
    outputs: Sequence[Mapping[str, Value]] = ()

    def among_all(self, places: Places) -> Places:
        """Return places among what left the vision graph, of places among what entered the decoder of one picture."""
        return self.chosen[0][places] if self.chosen else places


def select_tokens(
    interface: Interface,
    run: Run,
    prompt: Encoded,
    features: Sequence[Value],
    kept: Sequence[Places | None],
    *,
    upload: Callable[[NDArray[Any]], Value] = lambda array: array,
    download: Callable[[Value], NDArray[Any]] = lambda value: value,
) -> Entering:
    """Run the selection of a bundle, if it has one, for each picture; make the decoder's features of all.

    A selection sees one picture, and the text of the whole prompt behind its constant beginning: what a picture keeps
    doesn't depend on the others [ours]. Each tile is a picture here, where a bundle cuts pictures into tiles.

    Args:
        interface: The bundle's.
        run: Runs the selection's graph.
        prompt: The question, with a placeholder for each token that leaves the vision graph.
        features: These tokens of each picture, ``[1,N,C]``.
        kept: Of each picture int64 ``[N]``, the patch in whose place each token is; None where none was dropped.
        upload: Makes a value of the back end.
        download: Reads one.

    Raises:
        BundleError: It doesn't keep as many tokens as the manifest says, or one of them twice.
    """
    if interface.selection is None:
        whole = _joined(interface, features, upload, download)
        return Entering(prompt=prompt, features=whole, kept=among_all_pictures(interface, kept))
    said, chosen, places = [], [], []
    for index, (own, before) in enumerate(zip(features, kept, strict=True)):
        asked = with_one_picture(prompt, index, interface.prefix)
        outputs = run({INPUT_IDS: upload(asked.input_ids), IMAGE_FEATURES: own})
        picked = download(outputs[kept_at(SITE)])[0]
        _check(interface, picked)
        said.append(outputs)
        chosen.append(picked)
        places.append(picked if before is None else before[picked])
    return Entering(
        prompt=with_image_tokens(prompt, interface.image_tokens),
        features=_joined(interface, [outputs[SELECTED] for outputs in said], upload, download),
        kept=among_all_pictures(interface, places),
        chosen=chosen,
        outputs=said,
    )


def among_all_pictures(interface: Interface, kept: Sequence[Places | None]) -> Places | None:
    """Return the places of all pictures in one row: those of picture i begin at i * N; -1 stays."""
    before = interface.tokens_before  # with ``joint`` one row, of all pictures already
    rows = [np.where(own < 0, own, own + i * before) for i, own in enumerate(kept) if own is not None]
    return np.concatenate(rows) if rows else None


def _joined(
    interface: Interface,
    features: Sequence[Value],
    upload: Callable[[NDArray[Any]], Value],
    download: Callable[[Value], NDArray[Any]],
) -> Value:
    """Return the decoder's ``image_features``; where there may be several pictures, as many rows as for all of them.

    No placeholder asks for the rows behind the pictures that are there: what is in them changes no value. One picture
    stays where it is; several go through the host, some MiB once per prompt.
    """
    if interface.vision_runs == 1:
        return features[0]
    rows = np.concatenate([download(own) for own in features], axis=1)
    more = interface.feature_rows - rows.shape[1]
    return upload(np.pad(rows, ((0, 0), (0, more), (0, 0))) if more else rows)


def _check(interface: Interface, chosen: Places) -> None:
    count, distinct = interface.image_tokens, len(set(chosen.tolist()))
    if len(chosen) != count or distinct != count or chosen.min() < 0:
        raise BundleError(
            f"the selection keeps {distinct} of {interface.vision_tokens} tokens, the manifest says {count}: export"
            " again"
        )
