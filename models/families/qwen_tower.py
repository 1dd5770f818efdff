"""The vision towers of the Qwen-VL families, in the form that is traced: axial rotations, windows, groups of patches.

transformers packs the patches of pictures of any size into one sequence. An export fixes the size, so every picture
has the same patches: rows of ``x [B,N,C]`` in raster order, and everything that depends on the size is a constant.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lmmprune.errors import ModelError

Array = np.ndarray[Any, Any]
# cos and sin.
Turns = tuple[torch.Tensor, torch.Tensor]


def embed(tower: Any, pixels: torch.Tensor, *, frames: int = 1) -> torch.Tensor:
    """Return the patches of ``pixels [B,3,H,W]`` as ``[B,N,C]`` in raster order; a still picture is every frame.

    With ``frames`` each view has so many of its own, ``[B*frames,3,H,W]``.
    """
    if frames > 1:
        views = pixels.reshape(-1, frames, *pixels.shape[1:]).transpose(1, 2)
    else:
        views = pixels.unsqueeze(2).expand(-1, -1, tower.patch_embed.temporal_patch_size, -1, -1)
    patches: torch.Tensor = tower.patch_embed.proj(views)
    return patches.flatten(2).transpose(1, 2)


def rotary_angles(vision: Any, rows: int, columns: int) -> Array:
    """Return the angles ``[N,D/2]`` of a picture's patches: the first half by the patch's row, the other by its column.

    Args:
        vision: The vision configuration.
        rows: Patches.
        columns: Patches.

    Raises:
        ModelError: Another kind of rotation than the axial one.
    """
    kind = vision.rope_parameters["rope_type"]
    if kind != "axial":
        raise ModelError(f"the tower's rotation is '{kind}': expected 'axial'")
    # Qwen2-VL's hidden_size is the width behind its merger.
    quarter = getattr(vision, "embed_dim", vision.hidden_size) // vision.num_heads // 4
    # float32, as the model computes them.
    exponents = np.arange(quarter, dtype=np.float32) / np.float32(quarter)
    frequencies = (1 / np.float32(vision.rope_parameters["rope_theta"]) ** exponents).astype(np.float32)
    places = np.stack(np.divmod(np.arange(rows * columns), columns), axis=1).astype(np.float32)
    return (places[:, :, None] * frequencies).reshape(rows * columns, 2 * quarter)


def turns(angles: Array, *, batch: int, parts: int = 1) -> Turns:
    """Return cos and sin ``[B*parts,N/parts,D/2]`` of angles ``[N,D/2]``; made once, all layers share the constants."""
    tiled = np.tile(angles.reshape(parts, len(angles) // parts, -1), (batch, 1, 1))
    return torch.from_numpy(np.cos(tiled)), torch.from_numpy(np.sin(tiled))


class Windows:
    """The patches of a picture window by window, and back in raster order.

    Attributes:
        places: int64 ``[N]``, the raster place of each patch in the order of windows.
        count: How many windows.
    """

    def __init__(self, rows: int, columns: int, window: int) -> None:
        """Tile a picture of rows and columns of patches with squares of ``window`` patches a side."""
        tiles = np.arange(rows * columns).reshape(rows // window, window, columns // window, window)
        self.places = tiles.transpose(0, 2, 1, 3).ravel()
        self.count = rows // window * (columns // window)

    def enter(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``[B,N,C]`` in the order of windows."""
        return x.index_select(1, torch.from_numpy(self.places))

    def leave(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``[B,N,C]`` in raster order."""
        return x.index_select(1, torch.from_numpy(self.places.argsort()))


def block(layer: Any, x: torch.Tensor, turns: Turns) -> torch.Tensor:
    """Run one encoder layer.

    Args:
        layer: The module.
        x: ``[B,N,C]``.
        turns: cos and sin ``[B*parts,N/parts,D/2]``: so many equal stretches of x attend within themselves.
    """
    x = x + _attention(layer.attn, layer.norm1(x), *turns)
    mixed: torch.Tensor = layer.mlp(layer.norm2(x))
    return x + mixed


def _attention(module: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    batch, tokens, channels = x.shape
    # Stretches join the batch: attention within windows costs what windows cost.
    shape = (cos.shape[0], cos.shape[1], 3, module.num_heads, module.head_dim)
    q, k, v = module.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = (torch.onnx.ops.rotary_embedding(value, cos, sin) for value in (q, k))
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=module.scaling)
    projected: torch.Tensor = module.proj(mixed.transpose(1, 2).reshape(batch, tokens, channels))
    return projected


def group(x: torch.Tensor, grid: tuple[int, int], merge: int) -> torch.Tensor:
    """Return tokens ``[B,T,merge*merge*C]``, T in raster order, each its patches ``x [B,N,C]`` side by side.

    Args:
        x: Patches in raster order.
        grid: Rows and columns of tokens.
        merge: Patches along each side of a token.
    """
    batch, _, channels = x.shape
    rows, columns = grid
    squares = x.reshape(batch, rows, merge, columns, merge, channels).permute(0, 1, 3, 2, 4, 5)
    return squares.reshape(batch, rows * columns, merge * merge * channels)


def together(tokens: torch.Tensor, tiles: int) -> torch.Tensor:
    """Return the tokens ``[B*tiles,n,C]`` of views that are seen as one, ``[B,tiles*n,C]``."""
    return tokens if tiles == 1 else tokens.reshape(-1, tiles * tokens.shape[1], tokens.shape[2])


def merge_patches(merger: Any, x: torch.Tensor, grid: tuple[int, int], merge: int, tiles: int = 1) -> torch.Tensor:
    """Put patches ``x [B*tiles,N,C]`` together, normalized one by one or side by side, and project them to tokens."""
    behind = merger.use_postshuffle_norm
    tokens = together(group(x if behind else merger.norm(x), grid, merge), tiles)
    tokens = merger.norm(tokens) if behind else tokens
    projected: torch.Tensor = merger.linear_fc2(merger.act_fn(merger.linear_fc1(tokens)))
    return projected


def positions(tower: Any, rows: int, columns: int) -> torch.Tensor:
    """Return the learned positions ``[N,C]`` of a picture's patches, resampled from the tower's square table."""
    corners, shares = _resample(rows, columns, tower.num_grid_per_side)
    mixed: torch.Tensor = tower.pos_embed(torch.from_numpy(corners)) * torch.from_numpy(shares).unsqueeze(-1)
    return mixed.sum(0)


def _resample(rows: int, columns: int, side: int) -> tuple[Array, Array]:
    """Return which 4 of the ``side * side`` learned positions a patch mixes, and their shares, each ``[4,N]``.

    Bilinear, the corners of the table at the corners of the picture.
    """
    axes = []
    for count in (rows, columns):
        places = np.arange(count, dtype=np.float32) * np.float32(side - 1) / np.float32(max(count - 1, 1))
        low = np.floor(places).astype(np.int64)
        part = (places - low).astype(np.float32)
        axes.append(((low, 1 - part), (np.minimum(low + 1, side - 1), part)))
    pairs = [(row, column) for row in axes[0] for column in axes[1]]
    corners = [(row[0][:, None] * side + column[0]).ravel() for row, column in pairs]
    shares = [(row[1][:, None] * column[1]).ravel() for row, column in pairs]
    return np.stack(corners), np.stack(shares)
