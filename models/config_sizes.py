"""Sizes in a checkpoint's ``config.json``: what would never end, or divide by nothing, is refused before it is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lmmprune.limits import bounded

_LAYERS, _WIDTH, _COUNT = 2**10, 2**20, 2**31 - 1
MOST: dict[str, int] = {
    **dict.fromkeys(("num_hidden_layers", "depth", "num_attention_heads", "num_key_value_heads", "num_heads"), _LAYERS),
    **dict.fromkeys(("hidden_size", "intermediate_size", "head_dim", "embed_dim", "out_hidden_size"), _WIDTH),
    **dict.fromkeys(("image_size", "patch_size", "num_channels", "spatial_merge_size", "temporal_patch_size"), 2**14),
    **dict.fromkeys(("vocab_size", "max_position_embeddings"), _COUNT),
}
"""The largest that makes sense, by name; the smallest is 1."""


def check_sizes(config: Mapping[str, Any]) -> None:
    """Check the sizes of a configuration and of its parts.

    Raises:
        ValueError: One makes no sense; names the setting.
    """
    for field, name, value in _sizes(config, ""):
        for number in value if isinstance(value, list) else (value,):
            bounded(number, field, 1, MOST[name])


def _sizes(config: Mapping[str, Any], before: str) -> Iterator[tuple[str, str, Any]]:
    for name, value in config.items():
        field = f"{before}{name}"
        if isinstance(value, dict):
            yield from _sizes(value, f"{field}.")
        elif name in MOST and value is not None:
            yield field, name, value
