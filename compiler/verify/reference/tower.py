"""What the formulas need of a vision side, on a single picture; each family's is made of its module elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lmmprune.compiler.verify.reference.layer_attention import LayerAttention
from lmmprune.compiler.verify.reference.packing import Packing

Attend = Callable[[Any, torch.Tensor, list[float]], tuple[torch.Tensor, LayerAttention]]


@dataclass(frozen=True, kw_only=True)
class Tower:
    """What a picture goes through.

    Attributes:
        has_cls: Whether row 0 is a CLS token.
        depth: V, encoder layers before the features.
        layers: All encoder layers.
        columns: Patches in a row of the picture.
        embed: ``[3,height,width]`` -> ``[T,C]``.
        attend: A layer, the stream ``[T,C]``, the patches behind each row -> what attention adds, and its look.
        feed: A layer, the stream -> what the MLP adds.
        finish: The stream behind the last layer before the features -> the features.
        merge: Patches a side of the square that makes a token.
        project: Tokens ``[n, merge * merge * C]`` -> ``[n,C']``.
        windowed: Numbers of the layers that attend within windows: methods look at the next one that doesn't.
        compared: How many of the C' channels are the token's own features; None: all.
        packing: Which tokens a picture has that is cut into tiles; None: it is one image.
        newline: ``[C']``, with packing.
        views: Images of what is seen as one, where there is no packing.
        frames: Frames of each; with more than one ``embed`` takes ``[frames,3,height,width]``.
        pool: All projected patches ``[patches,C']`` -> tokens ``[n,C']``; None: they are the tokens.
    """

    has_cls: bool
    depth: int
    layers: Sequence[Any]
    columns: int
    embed: Callable[[torch.Tensor], torch.Tensor]
    attend: Attend
    feed: Callable[[Any, torch.Tensor], torch.Tensor]
    project: Callable[[torch.Tensor], torch.Tensor]
    finish: Callable[[torch.Tensor], torch.Tensor] = field(default=lambda x: x)
    merge: int = 1
    windowed: frozenset[int] = frozenset()
    compared: int | None = None
    packing: Packing | None = None
    newline: torch.Tensor | None = None
    views: int = 1
    frames: int = 1
    pool: Callable[[torch.Tensor], torch.Tensor] | None = None

    @property
    def tiles(self) -> int:
        """Images of a picture."""
        return self.packing.tiles if self.packing else self.views

    @property
    def newlines(self) -> int:
        """Tokens that are no patches."""
        return len(self.packing.newlines) if self.packing else 0

    def squares(self, patches: int) -> list[list[tuple[int, int]]]:
        """Return tile and patch of each patch of each token; within a tile of so many patches in raster order."""
        if self.packing and not self.pool:
            return [[token] for token in self.packing.patches]
        return [[(tile, patch) for patch in square] for tile in range(self.tiles) for square in self._squares(patches)]

    def _squares(self, patches: int) -> list[list[int]]:
        if self.merge == 1:
            return [[patch] for patch in range(patches)]
        m, rows = self.merge, patches // self.columns
        corners = [(y, x) for y in range(0, rows, m) for x in range(0, self.columns, m)]
        return [[(y + i) * self.columns + x + j for i in range(m) for j in range(m)] for y, x in corners]
