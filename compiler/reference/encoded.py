"""The picture behind the encoder, as the methods at the vision output see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmmprune.compiler.reference.look import Look


@dataclass
class Tile:
    """One image of the tower: C channels, T tokens, V layers were run."""

    y: np.ndarray  # [T,C] output at the feature layer, CLS first
    looks: list[Look]  # of layers 0..V-1; the last is lp
    behind: Look | None  # of layer V, for prumerge; None if the tower ends before


@dataclass
class Encoded:
    """All images of a picture; N patches in the decoder's order."""

    tiles: list[Tile]
    where: Sequence[tuple[int, int]]  # [N], the tile of each patch and its place there, CLS not counted
    has_cls: bool

    @property
    def layers(self) -> int:
        """V."""
        return len(self.tiles[0].looks)

    @property
    def x(self) -> np.ndarray:
        """[N,C], the patches."""
        return self.gathered([tile.y for tile in self.tiles])

    @property
    def n(self) -> int:
        """N."""
        return len(self.where)

    def token(self, j: int) -> tuple[int, int]:
        """Tile and token, CLS counted, of patch j."""
        tile, place = self.where[j]
        return tile, place + self.has_cls

    def gathered(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """[N,any], the patches' rows of what each tile has for its tokens, [T,any]."""
        return np.stack([rows[tile][token] for tile, token in map(self.token, range(self.n))])

    def keys(self) -> np.ndarray:
        """[N,D], head-mean keys of the patches at lp."""
        return self.gathered([tile.looks[-1].mean_keys for tile in self.tiles])

    def attention(self, layer: int = -1) -> list[np.ndarray]:
        """Head-mean attention of each tile's tokens on each other, [T,T]; none reaches into another tile."""
        return [tile.looks[layer].mean_attention for tile in self.tiles]

    def cls_score(self, layer: int = -1) -> dict[int, float]:
        """Head-mean attention on each patch of its own tile's CLS."""
        rows = [attention[0] for attention in self.attention(layer)]
        return {j: float(rows[tile][token]) for j, (tile, token) in enumerate(map(self.token, range(self.n)))}
