"""Bring a checkpoint's configuration into the form that is traced, and say how far its positions reach in that form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lmmprune.errors import ModelError
from lmmprune.models import private_names

# Decoders that are known to be traced, pruned and verified, by model_type.
DECODERS = ("llama", "mistral", "qwen2", "qwen3", "qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text")
_SLIDING = "sliding_attention"
_CHANGING = ("dynamic", "longrope")
"""Rotary frequencies that depend on the length of the sequence."""


@dataclass(frozen=True, kw_only=True)
class Reach:
    """How many positions a traced decoder serves.

    Attributes:
        positions: The number.
        why: What ends there, where it isn't just ``max_position_embeddings``; None: nothing else.
    """

    positions: int
    why: str | None = None


def as_traced(config: Any) -> Any:
    """Return a configuration whose parts all compute in float32 with one attention node per layer; changed in place.

    Half-precision checkpoints say their type in every part (``dtype``, ``torch_dtype`` before transformers 5), and a
    part is built in the type that its own configuration says: half-precision activations beside float32 weights. The
    canonical graph is float32, whatever type the weights lie in.
    """
    import torch

    for part in parts(config):
        part.dtype = torch.float32
    # A checkpoint may ask for a kernel that isn't installed here, or that a trace can't see through.
    private_names.attend_in_one_node(config)
    return config


def put_together(config: Any, pictures: int) -> None:
    """Let a model see so many pictures as one whose images are tiles: what is chosen, is chosen among all of them.

    The number goes with the configuration wherever that goes: into the trace and its key, and to the loaded model.
    """
    config.pictures_together = pictures


def pictures_together(config: Any) -> int:
    """Return how many pictures are seen as one: 1, unless ``put_together`` said otherwise."""
    return getattr(config, "pictures_together", 1)


def parts(config: Any) -> Iterator[Any]:
    """Yield a configuration and those of all its parts."""
    yield config
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if part is not None:
            yield from parts(part)


def check_decoder(text: Any) -> None:
    """Refuse a language model that isn't known.

    Raises:
        ModelError: Names its architecture, and those that are served.
    """
    if text.model_type not in DECODERS:
        raise ModelError(
            f"the language model is a '{text.model_type}', which isn't served: expected one of {', '.join(DECODERS)}"
        )


def reach(text: Any) -> Reach:
    """Return how far positions reach while attention is full and the rotary frequencies are constant.

    Within a sliding window's length every token sees all before it, and below the original length dynamic and longrope
    scaling leave the frequencies as they are: up to there, and no further, the traced graph is the model.
    """
    limits = [Reach(positions=text.max_position_embeddings)]
    window = _window(text)
    if window is not None:
        why = f"the sliding window of {window} tokens: behind it attention isn't full"
        limits.append(Reach(positions=window, why=why))
    scaling = text.rope_parameters or {}
    kind = scaling.get("rope_type", "default")
    if kind in _CHANGING:
        # Dynamic scaling begins at max_position_embeddings, whatever else is written beside it.
        original = text.max_position_embeddings
        if kind == "longrope":
            original = scaling.get("original_max_position_embeddings") or original
        why = f"rope_type '{kind}': behind {original} positions its frequencies change"
        limits.append(Reach(positions=int(original), why=why))
    return min(limits, key=lambda limit: (limit.positions, limit.why is None))


def _window(text: Any) -> int | None:
    """Return the length of the sliding window that some layer has; None if all see everything."""
    window = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None)
    slides = kinds is None or _SLIDING in kinds
    return int(window) if window is not None and slides else None


def without_windows(text: Any) -> None:
    """Let every layer see everything, as it does within ``reach``; changed in place."""
    if _window(text) is None:
        return
    text.sliding_window = None
    if getattr(text, "layer_types", None) is not None:
        text.layer_types = ["full_attention" for _ in text.layer_types]


def fix_rotation(rotary: Any) -> None:
    """Let a module keep the frequencies that it begins with, as within ``reach``; changed in place."""
    if getattr(rotary, "rope_type", None) in _CHANGING:
        rotary.rope_type = "default"
