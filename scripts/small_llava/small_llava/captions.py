"""Contrastive pre-training: the CLS token is matched with captions of the scenes.

Reference: A. Radford et al., 2021, Learning Transferable Visual Models From Natural Language
Supervision, arXiv 2103.00020.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from lmmprune.models.tiny_llava.scenes import COLOUR_NAMES
from small_llava.glyphs import WORDS
from small_llava.pools import Pool
from small_llava.scenes import GRID, KINDS, PATCH_SIZE, SHAPES

MENTIONED = 3
"""Objects that a caption mentions."""

_PLACES = 3
# pad, colours, kinds, words, shapes, digits, left/middle/right, top/middle/bottom
_STARTS = np.cumsum([1, len(COLOUR_NAMES), len(KINDS), len(WORDS), len(SHAPES), 10, _PLACES, _PLACES])
_WORDS_OF_ONE = 7  # colour, kind, up to three words of content, across, down


def draw_captions(pool: Pool, rng: np.random.Generator, rows: NDArray[np.int64]) -> Tensor:
    """Describe some objects of each scene ("red number 4 2 left top"); ids `[B, MENTIONED * 7]`, 0 = padding."""
    truth = pool.truth[rows].astype(np.int64)
    order = np.where(truth[:, :, 0] >= 0, rng.random(truth.shape[:2]), 2.0).argsort(1)[:, :MENTIONED]
    kind, content, colour, x, y = (np.take_along_axis(truth[:, :, column], order, 1) for column in range(5))
    ids = np.zeros((*kind.shape, _WORDS_OF_ONE), np.int64)
    ids[..., 0], ids[..., 1] = _STARTS[0] + colour, _STARTS[1] + kind
    for start, name in ((2, "word"), (3, "shape"), (4, "digit")):
        mine = kind == KINDS.index(name)  # type: ignore[arg-type]
        ids[mine, 2] = _STARTS[start] + content[mine]
    number = kind == KINDS.index("number")
    for column, power in ((2, 100), (3, 10), (4, 1)):
        shown = number & (content >= power)
        ids[shown, column] = _STARTS[4] + content[shown] // power % 10
    span = 2 * GRID * PATCH_SIZE
    ids[..., 5], ids[..., 6] = _STARTS[5] + x * _PLACES // span, _STARTS[6] + y * _PLACES // span
    return torch.from_numpy(ids.reshape(len(rows), -1))


class CaptionEncoder(nn.Module):
    """A small text encoder and the symmetric contrastive loss."""

    def __init__(self, width: int) -> None:
        """Create an encoder of two layers."""
        super().__init__()
        self.words = nn.Embedding(int(_STARTS[-1]), width)
        self.places = nn.Parameter(0.02 * torch.randn(MENTIONED * _WORDS_OF_ONE, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.text = nn.Linear(width, width, bias=False)
        self.image = nn.Linear(width, width, bias=False)
        self.scale = nn.Parameter(torch.tensor(2.3))

    def forward(self, cls: Tensor, captions: Tensor) -> tuple[Tensor, float]:
        """Return the loss of matching `cls` `[B, C]` with `captions` `[B, T]`, and the share matched."""
        padding = captions == 0
        read = self.layers(self.words(captions) + self.places, src_key_padding_mask=padding)
        known = (~padding).unsqueeze(-1).float()
        text = functional.normalize(self.text((read * known).sum(1) / known.sum(1)), dim=-1)
        logits = self.scale.clamp(max=4.6).exp() * functional.normalize(self.image(cls), dim=-1) @ text.T
        true = torch.arange(len(logits), device=logits.device)
        loss = (functional.cross_entropy(logits, true) + functional.cross_entropy(logits.T, true)) / 2
        return loss, (logits.argmax(1) == true).float().mean().item()
