"""Which tower images a picture has, and which of their patches, or newlines, the decoder's visual tokens are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

NEWLINE = (-1, -1)


@dataclass(frozen=True)
class Packing:
    """``tokens`` holds for each visual token, in the decoder's order, its tile and its patch there, or ``NEWLINE``."""

    tiles: int
    tokens: list[tuple[int, int]]

    @property
    def patches(self) -> list[tuple[int, int]]:
        """The tokens that are patches: the candidates of a cut before the decoder."""
        return [token for token in self.tokens if token != NEWLINE]

    @property
    def places(self) -> list[int]:
        """For each of ``patches`` its place among the tokens."""
        return [place for place, token in enumerate(self.tokens) if token != NEWLINE]

    @property
    def newlines(self) -> list[int]:
        """Their places among the tokens."""
        return [place for place, token in enumerate(self.tokens) if token == NEWLINE]


def anyres(config: Any) -> Packing:
    """Return the packing of LLaVA's 'anyres' pictures; the configuration must list a single grid of tiles."""
    vision = config.vision_config
    side = vision.image_size // vision.patch_size
    tokens = [(0, patch) for patch in range(side * side)]
    ((height, width),) = config.image_grid_pinpoints
    rows, columns = height // vision.image_size, width // vision.image_size
    for y in range(rows * side):
        for x in range(columns * side):
            tile = 1 + (y // side) * columns + x // side
            tokens.append((tile, (y % side) * side + x % side))
        tokens.append(NEWLINE)
    return Packing(tiles=1 + rows * columns, tokens=tokens)


def side_by_side(config: Any) -> Packing:
    """Return the packing of several pictures that are seen as one: all patches of the first, then of the second, ..."""
    vision = config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    pictures = config.pictures_together
    return Packing(tiles=pictures, tokens=[(picture, patch) for picture in range(pictures) for patch in range(patches)])
