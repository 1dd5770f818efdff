"""The picture behind the encoder, as the methods at the vision output see it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lmmprune.compiler.reference.look import Look


@dataclass
class Encoded:
    """N tokens, each made of one patch or of several; T = CLS and all patches, C channels; V layers were run."""

    y: np.ndarray  # [T,C] output at the feature layer, CLS first
    looks: list[Look]  # of layers 0..V-1 or, for one of windows, of the next without; the last is lp
    behind: Look | None  # of layer V, for prumerge; None if the tower ends before
    has_cls: bool
    squares: list[list[int]] = field(default_factory=list)  # the patches of each token; none given: one each

    def __post_init__(self) -> None:
        if not self.squares:
            self.squares = [[patch] for patch in range(len(self.y) - self.first)]

    @property
    def first(self) -> int:
        """Row of patch 0."""
        return int(self.has_cls)

    @property
    def x(self) -> np.ndarray:
        """[N,C], the tokens; of several patches side by side."""
        return np.stack([np.concatenate([self.y[row] for row in self.rows(j)]) for j in range(self.n)])

    @property
    def n(self) -> int:
        """Tokens."""
        return len(self.squares)

    @property
    def keeps_cls(self) -> bool:
        """Whether there is a CLS token that fits among the others."""
        return self.has_cls and len(self.squares[0]) == 1

    def rows(self, token: int) -> list[int]:
        """Rows of the patches of a token."""
        return [self.first + patch for patch in self.squares[token]]

    def pooled(self, values: np.ndarray) -> np.ndarray:
        """[T,...] -> [N,...], means over the patches of each token."""
        return np.stack([sum(values[row] for row in self.rows(j)) / len(self.squares[j]) for j in range(self.n)])

    def scores(self, values: np.ndarray) -> dict[int, float]:
        """[T] -> the mean over the patches of each token."""
        return {j: float(value) for j, value in enumerate(self.pooled(values))}

    def keys(self) -> np.ndarray:
        """[N,D], head-mean keys at lp, mean over the patches of each token."""
        return self.pooled(self.looks[-1].mean_keys)

    def cls_score(self, layer: int = -1) -> dict[int, float]:
        """Head-mean attention of CLS."""
        return self.scores(self.looks[layer].mean_attention[0])
