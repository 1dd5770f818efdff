"""The picture behind the encoder, as the methods at the vision output see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmmprune.compiler.verify.reference.layer_attention import LayerAttention


@dataclass
class Tile:
    """One image that the tower saw: T = CLS and all its patches, C channels; V layers were run."""

    y: np.ndarray  # [T,C] output at the feature layer, CLS first
    looks: list[LayerAttention]  # of layers 0..V-1 or, for one of windows, of the next without; the last is lp
    behind: LayerAttention | None  # of layer V, for prumerge; None if the tower ends before


@dataclass
class Encoded:
    """N tokens in the decoder's order, each made of one patch or of several, and the images that they are from."""

    tiles: list[Tile]
    has_cls: bool
    squares: Sequence[Sequence[tuple[int, int]]]  # [N], the tile and the patch of each patch of a token
    columns: int  # tokens in a row of a tile

    @property
    def layers(self) -> int:
        """V."""
        return len(self.tiles[0].looks)

    @property
    def x(self) -> np.ndarray:
        """[N,C], the tokens; of several patches side by side."""
        return np.stack([np.concatenate([self.tiles[t].y[row] for t, row in self.rows(j)]) for j in range(self.n)])

    @property
    def n(self) -> int:
        """Tokens."""
        return len(self.squares)

    @property
    def keeps_cls(self) -> bool:
        """Whether there is a CLS token, one per tile, that fits among the others."""
        return self.has_cls and len(self.squares[0]) == 1

    def rows(self, token: int) -> list[tuple[int, int]]:
        """Tile and row there of the patches of a token."""
        return [(tile, patch + self.has_cls) for tile, patch in self.squares[token]]

    def pooled(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """[T,...] of each tile -> [N,...], means over the patches of each token."""
        squares = [self.rows(j) for j in range(self.n)]
        return np.stack([sum(values[tile][row] for tile, row in square) / len(square) for square in squares])

    def scores(self, values: Sequence[np.ndarray]) -> dict[int, float]:
        """[T] of each tile -> the mean over the patches of each token."""
        return {j: float(value) for j, value in enumerate(self.pooled(values))}

    def keys(self) -> np.ndarray:
        """[N,D], head-mean keys at lp, mean over the patches of each token."""
        return self.pooled([tile.looks[-1].mean_keys for tile in self.tiles])

    def attention(self, layer: int = -1) -> list[np.ndarray]:
        """Head-mean attention within each tile, [T,T]; none reaches into another tile."""
        return [tile.looks[layer].mean_attention for tile in self.tiles]

    def received(self) -> dict[int, float]:
        """Head-mean attention at lp that each token receives from all other rows of its tile."""
        attention = [one.astype(np.float64) for one in self.attention()]
        return self.scores([one.sum(axis=0) - one.diagonal() for one in attention])

    def cls_score(self, layer: int = -1) -> dict[int, float]:
        """Head-mean attention of the tile's CLS."""
        return self.scores([attention[0] for attention in self.attention(layer)])
