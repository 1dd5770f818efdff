"""Give a prompt to a decoder: all of it in one run, or in pieces behind what its cache holds already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmmprune.compiler.backends.session import Value
from lmmprune.compiler.bundle.interface import Interface
from lmmprune.compiler.bundle.manifest import Manifest
from lmmprune.compiler.runtime.select_tokens import Entering
from lmmprune.compiler.targets.targets import TARGETS
from lmmprune.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Piece:
    """The tokens of one run of the decoder.

    Attributes:
        ids: int64 ``[1,n]``.
        positions: int64 ``[1,n]``; with M-RoPE ``[3,1,n]``.
        features: ``image_features``, a value of the back end: row j is that of the j-th placeholder in these ids.
    """

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    features: Value


def pieces_of(
    interface: Interface,
    entering: Entering,
    positions: NDArray[np.int64],
    *,
    begin: int = 0,
    chunk: int | None = None,
    upload: Callable[[NDArray[Any]], Value] = lambda array: array,
    download: Callable[[Value], NDArray[Any]] = lambda value: value,
) -> list[Piece]:
    """Cut what of a prompt isn't in the cache yet into the runs of a decoder.

    Behind a prompt every cut in the decoder is the identity, for runs of at most ``Interface.longest_run`` tokens.

    Args:
        interface: The bundle's.
        entering: The whole prompt, and its pictures.
        positions: Position ids of all of it.
        begin: Tokens that the cache holds.
        chunk: Tokens of a run at most; None: as many as there are.
        upload: Makes a value of the back end.
        download: Reads one.
    """
    ids = entering.prompt.input_ids
    end = ids.shape[1]
    most = end if chunk is None else chunk
    if begin and interface.longest_run is not None:
        most = min(most, interface.longest_run)
    pieces = []
    for start in range(begin, end, most):
        stop = min(start + most, end)
        shown, more = (
            sum(min(max(at - first, 0), count) for first, count in entering.prompt.spans) for at in (start, stop)
        )
        features = entering.features
        if shown and more > shown:
            # The decoder gives row j to the j-th placeholder that it sees.
            features = upload(np.roll(download(features), -shown, axis=1))
        pieces.append(Piece(ids=ids[:, start:stop], positions=positions[..., start:stop], features=features))
    return pieces


def check_chunk(manifest: Manifest, chunk: int | None) -> None:
    """Refuse to give a prompt in pieces where that would change what is kept, or can't be done.

    Raises:
        InputError: The decoder has cuts, or it is an engine that takes several tokens with an empty cache only.
    """
    if chunk is None:
        return
    if chunk < 1:
        raise InputError(f"a prefill chunk of {chunk} tokens: expected 1 or more")
    if sites := manifest.decoder_sites:
        raise InputError(
            f"a prefill in chunks: this bundle cuts at {sites[0].site}, where one run sees the picture and the end of"
            " the prompt, and a chunk that ends the picture doesn't hold it: leave the chunks out, or export with a"
            " method that cuts in front of the decoder's layers (vispruner, divprune, cdpruner, ...; see 'lmmprune"
            " methods')"
        )
    check_engine(manifest, "a prefill in chunks")


def check_engine(manifest: Manifest, what: str) -> None:
    """Refuse several tokens behind others on engines whose profiles don't have them.

    Raises:
        InputError: It is such an engine.
    """
    if TARGETS[manifest.target].compiled and (manifest.cache.capacity is None or manifest.decoder_sites):
        advice = "a method that cuts in front of the decoder's layers" if manifest.decoder_sites else "--static-cache N"
        raise InputError(
            f"{what}: engines for {manifest.target} take a whole prompt with an empty cache, or one token with a filled"
            f" one; export with {advice}"
        )
