"""The picture behind the encoder, as the methods at the vision output see it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lmmprune.compiler.reference.look import Look


@dataclass
class Encoded:
    """N patches, C channels, T = N + has_cls tokens; V layers were run."""

    y: np.ndarray  # [T,C] output at the feature layer, CLS first
    looks: list[Look]  # of layers 0..V-1; the last is lp
    behind: Look | None  # of layer V, for prumerge; None if the tower ends before
    has_cls: bool

    @property
    def first(self) -> int:
        """Token of patch 0."""
        return int(self.has_cls)

    @property
    def x(self) -> np.ndarray:
        """[N,C], the patches."""
        return self.y[self.first :]

    @property
    def n(self) -> int:
        """Patches."""
        return len(self.x)

    def keys(self) -> np.ndarray:
        """[N,D], head-mean keys of the patches at lp."""
        return self.looks[-1].mean_keys[self.first :]

    def cls_score(self, layer: int = -1) -> dict[int, float]:
        """Head-mean attention of CLS on each patch."""
        row = self.looks[layer].mean_attention[0]
        return {j: float(row[j + self.first]) for j in range(self.n)}
