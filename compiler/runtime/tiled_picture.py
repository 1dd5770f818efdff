"""A picture of several tiles, which the vision graph sees one at a time: put together, and taken apart again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmmprune.compiler.backends.session import Value
from lmmprune.compiler.bundle.tile_grids import Grid
from lmmprune.compiler.runtime.image_features import ImageFeatures, SiteTokens
from lmmprune.compiler.runtime.tile_rule import Picked

Download = Callable[[Value], NDArray[Any]]
Upload = Callable[[NDArray[Any]], Value]


class Part(NamedTuple):
    """What the vision graph left of one image: of a tile, or of a whole picture.

    Attributes:
        features: ``[1,K,C]``, a value of the back end.
        kept: int64 ``[K]``, its patches; None where none was dropped.
    """

    features: Value
    kept: NDArray[np.int64] | None


def put_together(
    parts: Sequence[ImageFeatures],
    picked: Picked,
    patches: int,
    *,
    upload: Upload,
    download: Download,
    preprocess_ms: float,
) -> ImageFeatures:
    """Return what the vision graph made of a picture, of what it made of its tiles.

    Args:
        parts: Of each tile, in the order of the prompt.
        picked: The picture's grid.
        patches: N, visual tokens of a tile; the places of tile i begin at i * N.
        upload: Makes a value of the back end.
        download: Reads one.
        preprocess_ms: Milliseconds from the picture to the pixels of all tiles.
    """
    places = [part.kept for part in parts if part.kept is not None]
    return ImageFeatures(
        features=upload(np.concatenate([download(part.features) for part in parts], axis=1)),
        tokens=sum(part.tokens for part in parts),
        kept=_in_one_row(places, patches) if places else None,
        sites=join_sites([part.sites for part in parts], patches),
        preprocess_ms=preprocess_ms,
        vision_ms=sum(part.vision_ms for part in parts),
        counts=tuple(part.tokens for part in parts),
        picked=picked,
    )


def parts_of(pictures: Sequence[ImageFeatures], patches: int, *, upload: Upload, download: Download) -> list[Part]:
    """Return the images of a prompt's pictures, each with places of its own: all tiles, or the pictures themselves.

    Args:
        pictures: In their order.
        patches: N, visual tokens of a tile.
        upload: Makes a value of the back end.
        download: Reads one.
    """
    features: list[Value] = []
    for picture in pictures:
        if _is_whole(picture):
            features.append(picture.features)
        else:
            rows = np.split(download(picture.features), np.cumsum(picture.counts)[:-1], axis=1)
            features += [upload(row) for row in rows]
    return [Part(*pair) for pair in zip(features, places_of(pictures, patches), strict=True)]


def places_of(pictures: Sequence[ImageFeatures], patches: int) -> list[NDArray[np.int64] | None]:
    """Return the places of each image of a prompt's pictures, as ``parts_of``."""
    found: list[NDArray[np.int64] | None] = []
    for picture in pictures:
        if _is_whole(picture):
            found.append(picture.kept)
        elif picture.kept is None:
            found += [None] * len(picture.counts)
        else:
            rows = np.split(picture.kept, np.cumsum(picture.counts)[:-1])
            found += [np.where(row < 0, row, row % patches) for row in rows]
    return found


def grids_of(pictures: Sequence[ImageFeatures]) -> list[Grid] | None:
    """Return the grid of each picture of a prompt; None where they aren't cut into tiles."""
    grids = [picture.picked.grid for picture in pictures if picture.picked is not None]
    return grids or None


def join_sites(sites: Sequence[Mapping[str, SiteTokens]], patches: int) -> dict[str, SiteTokens]:
    """Return what leaves each site of a picture, of what leaves it of each tile."""
    return {
        name: SiteTokens(
            tokens_in=sum(tile[name].tokens_in for tile in sites),
            kept=_in_one_row([tile[name].kept for tile in sites], patches),
            received=np.concatenate([tile[name].received for tile in sites]),
        )
        for name in sites[0]
    }


def _in_one_row(places: Sequence[NDArray[np.int64]], patches: int) -> NDArray[np.int64]:
    return np.concatenate([np.where(own < 0, own, own + i * patches) for i, own in enumerate(places)])


def _is_whole(picture: ImageFeatures) -> bool:
    return picture.picked is None or len(picture.counts) == 1
