"""What the vision graph makes of a picture, read from its outputs and held against the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmmprune.compiler.backends.session import Session, Value
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.bundle.manifest import Manifest
from lmmprune.compiler.runtime.tile_rule import Picked
from lmmprune.errors import BundleError
from lmmprune.names import received_at


@dataclass(frozen=True, kw_only=True)
class SiteTokens:
    """The visual tokens that leave one site.

    Attributes:
        tokens_in: Tokens that arrived there.
        kept: int64 ``[K]``, the patch in whose place each token is; -1: none.
        received: bool ``[K]``, whether other tokens went into it at this site.
    """

    tokens_in: int
    kept: NDArray[np.int64]
    received: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class ImageFeatures:
    """What the vision graph made of a picture; several questions may share it.

    Attributes:
        features: ``[1, K, C]``, a value of the back end.
        tokens: K.
        kept: int64 ``[K]``, indices into the N patches; None when the graph doesn't prune.
        sites: What leaves each site of the vision graph that removes tokens, by its name, in the data's order.
        preprocess_ms: milliseconds from the picture to its pixel values.
        vision_ms: milliseconds of the vision graph.
        dynamic_count: How many patches the method itself would keep of this picture; None where it doesn't say.
        counts: How many tokens each picture is left, where the bundle chooses among all of them together, or each tile,
            where it cuts pictures into tiles; else none.
        picked: The grid of tiles that the picture was cut into, where the bundle has such; the kept places of tile i
            begin at i * N then.
    """

    features: Value
    tokens: int
    kept: NDArray[np.int64] | None
    sites: Mapping[str, SiteTokens]
    preprocess_ms: float
    vision_ms: float
    dynamic_count: int | None = None
    counts: tuple[int, ...] = ()
    picked: Picked | None = None

    @property
    def each(self) -> tuple[int, ...]:
        """Tokens of each run of placeholders: of one picture, of all that were seen together, or of each tile."""
        return self.counts or (self.tokens,)

    @property
    def pictures(self) -> int:
        """Pictures that it is of: one, unless the bundle chooses among several together."""
        return len(self.each) if self.picked is None else 1


def counts_of(bundle: Bundle, kept: NDArray[np.int64]) -> tuple[int, ...]:
    """Return how many of the tokens that were chosen among all pictures are of each.

    A token that is no patch (-1) counts to the picture of the token before it, the first ones to the first [ours].

    Raises:
        BundleError: They aren't in the order of the pictures.
    """
    manifest = bundle.manifest
    owners = np.maximum.accumulate(np.where(kept < 0, 0, kept // manifest.picture_tokens))
    if (kept >= 0).any() and (owners != np.where(kept < 0, owners, kept // manifest.picture_tokens)).any():
        raise BundleError(f"the vision graph of '{bundle.path}' mixes the tokens of its pictures: export again")
    return tuple(np.bincount(owners, minlength=manifest.images).tolist())


def as_pictures(given: ImageFeatures | Sequence[ImageFeatures]) -> Sequence[ImageFeatures]:
    """Return the pictures of a prompt, of one or of several."""
    return (given,) if isinstance(given, ImageFeatures) else given


def read_sites(
    session: Session, outputs: Mapping[str, Value], manifest: Manifest, *, in_decoder: bool
) -> dict[str, SiteTokens]:
    """Return what a graph says of its sites; one that removes no visual token has nothing to say."""
    found = {}
    for stage in manifest.schedule:
        if stage.in_decoder != in_decoder or stage.kept is None or stage.tokens_out == stage.tokens_in:
            continue
        if (places := outputs.get(stage.kept)) is None:
            continue
        kept = session.download(places)[0]
        flags = outputs.get(received_at(stage.site))
        received = np.zeros(len(kept), bool) if flags is None else session.download(flags)[0].astype(bool)
        found[stage.site] = SiteTokens(tokens_in=stage.tokens_in, kept=kept, received=received)
    return found


def check_tokens(bundle: Bundle, features: int, kept: NDArray[np.int64] | None, tokens: int) -> None:
    """Hold the first output of a vision graph against the manifest's promise.

    Args:
        bundle: The bundle.
        features: Tokens that the graph left.
        kept: Their places, int64 ``[K]``; None when the graph doesn't prune.
        tokens: How many the manifest says.

    Raises:
        BundleError: They differ, or the places aren't distinct patches.
    """
    before = bundle.manifest.tokens_before
    for found in (features, features if kept is None else len(kept)):
        if found != tokens:
            raise BundleError(
                f"the vision graph of '{bundle.path}' leaves {found} tokens, its manifest says {tokens} of {before}: "
                "export again"
            )
    if kept is None:
        return
    # -1 marks a token that has the place of no patch, as a sum of dropped ones.
    places = kept[kept >= 0]
    if (kept < -1).any() or (places >= before).any() or len(set(places.tolist())) < len(places):
        raise BundleError(
            f"the vision graph of '{bundle.path}' gives kept indices that aren't distinct patches of "
            f"0..{before - 1}: export again"
        )
