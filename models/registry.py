"""The models and families that are known by name, and how a ``--model`` argument becomes a directory."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmmprune.errors import ModelError, require, suggestion
from lmmprune.models import llava, llava_next, llava_onevision
from lmmprune.models.family import Family

FAMILIES: dict[str, Family] = {
    family.name: family for family in (llava.FAMILY, llava_next.FAMILY, llava_onevision.FAMILY)
}


Config = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Alias:
    """A short name: where its checkpoint is, and its configuration for use without the checkpoint.

    ``config`` are the arguments of the family's transformers configuration; each part names its ``model_type``.
    """

    hub_id: str | None
    family: str
    note: str
    config: Config | None = None


_CLIP_L_336 = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
_SIGLIP_SO400M_384 = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "vision_use_head": False,
}


def _vicuna(width: int, mlp: int, layers: int, heads: int) -> Config:
    """Return what LLaVA makes of Vicuna: with tokens for the picture and padding."""
    text = {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 4096,
        "vocab_size": 32064,
    }
    return {"vision_config": _CLIP_L_336, "text_config": text, "image_token_index": 32000}


_VICUNA_7B, _VICUNA_13B = _vicuna(4096, 11008, 32, 32), _vicuna(5120, 13824, 40, 40)
_QWEN2_05B = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    "vocab_size": 152000,
    "tie_word_embeddings": True,
}


def _hub(repository: str, family: str, note: str, config: Config) -> Alias:
    return Alias(hub_id=f"llava-hf/{repository}", family=family, note=note, config=config)


ALIASES: dict[str, Alias] = {
    "tiny-llava": Alias(hub_id=None, family="llava", note="trained on handwritten digits, comes with lmmprune"),
    "llava-1.5-7b": _hub("llava-1.5-7b-hf", "llava", "LLaVA-1.5 with Vicuna 7B", _VICUNA_7B),
    "llava-1.5-13b": _hub("llava-1.5-13b-hf", "llava", "LLaVA-1.5 with Vicuna 13B", _VICUNA_13B),
    "llava-v1.6-vicuna-7b": _hub("llava-v1.6-vicuna-7b-hf", "llava_next", "LLaVA-NeXT with Vicuna 7B", _VICUNA_7B),
    "llava-v1.6-vicuna-13b": _hub("llava-v1.6-vicuna-13b-hf", "llava_next", "LLaVA-NeXT with Vicuna 13B", _VICUNA_13B),
    "llava-onevision-qwen2-0.5b": _hub(
        "llava-onevision-qwen2-0.5b-ov-hf",
        "llava_onevision",
        "LLaVA-OneVision with Qwen2 0.5B",
        {"vision_config": _SIGLIP_SO400M_384, "text_config": _QWEN2_05B},
    ),
}

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Weights as safetensors and plain data only: no pickles, no code.
_HUB_FILES = ["*.json", "*.jinja", "tokenizer.model"]
_HUB_WEIGHTS = ["*.safetensors"]


def tiny_llava_dir() -> Path:
    """Return the directory of the small trained model that ships with the package."""
    return Path(__file__).parent / "tiny_llava"


def family_of(model_type: str) -> Family:
    """Return the family that serves a ``model_type``.

    Raises:
        ModelError: No family serves it.
    """
    if model_type not in FAMILIES:
        raise ModelError(f"model_type '{model_type}' has no family here{suggestion(model_type, FAMILIES)}")
    return FAMILIES[model_type]


def locate(model: str) -> Path | str:
    """Turn a ``--model`` argument into a local directory, or a hub id that must be fetched first.

    Raises:
        ModelError: It is neither a directory, nor an alias, nor shaped like a hub id.
    """
    if model == "tiny-llava":
        return tiny_llava_dir()
    if model in ALIASES:
        return ALIASES[model].hub_id or model
    path = Path(model)
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(f"'{model}' is a file: give the directory that holds config.json")
    if _HUB_ID.fullmatch(model) and not model.startswith("."):
        return model
    raise ModelError(f"no model '{model}': not a directory, an alias or a hub id{suggestion(model, ALIASES)}")


def fetch(hub_id: str, *, weights: bool = True) -> Path:
    """Download a checkpoint's data files (safetensors and JSON only) and return the local directory.

    Args:
        hub_id: ``owner/name``.
        weights: Whether the safetensors are needed: synthetic weights and counting FLOPs do without the gigabytes.

    Raises:
        ModelError: The hub can't be reached or doesn't have it.
    """
    hub = require("huggingface_hub", "export")
    try:
        return Path(hub.snapshot_download(hub_id, allow_patterns=_HUB_FILES + (_HUB_WEIGHTS if weights else [])))
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"'{hub_id}' could not be fetched ({reason[:160]}): give a local directory, or use --weights dummy with one"
            f" of {', '.join(name for name, alias in ALIASES.items() if alias.config)}"
        ) from error
