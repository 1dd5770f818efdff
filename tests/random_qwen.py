"""Tiny random Qwen-VL checkpoints in the Hugging Face layout, with a tokenizer and a processor."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from random_llava import fill
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

_ROOT = tempfile.TemporaryDirectory(prefix="lmmprune-qwen-")
FAMILIES = ("qwen2_5_vl", "qwen3_vl")
HEIGHT, WIDTH = 32, 48  # pixels
PATCH, MERGE = 4, 2
IMAGE, END = 3, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>"]
SPECIAL += ["<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "temporal_patch_size": 2,
    "out_hidden_size": 32,
    "image_size": [HEIGHT, WIDTH],
}
_TEXT = {
    "vocab_size": 72,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": END,
    "pad_token_id": 0,
}


def config(family: str, **vision: Any) -> Any:
    """Return a configuration: six tokens by four, of which windows take squares of two by two."""
    from transformers import AutoConfig

    # More frequencies for the frame than for the rows, as the real ones have.
    sections = {"qwen2_5_vl": [1, 2, 1], "qwen3_vl": [4, 2, 2]}[family]
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}
    own: dict[str, Any] = {
        "qwen2_5_vl": {"depth": 4, "window_size": 16, "fullatt_block_indexes": [1, 3]},
        "qwen3_vl": {"depth": 3, "num_position_embeddings": 25, "deepstack_visual_indexes": [0, 1]},
    }[family]
    text = _TEXT | {"rope_parameters": rope} | ({"head_dim": 16} if family == "qwen3_vl" else {})
    return AutoConfig.for_model(
        family,
        vision_config=_VISION | own | vision,
        text_config=text,
        image_token_id=IMAGE,
        video_token_id=4,
        vision_start_token_id=5,
        vision_end_token_id=6,
    )


@functools.cache
def checkpoint(family: str) -> Path:
    """Return the directory of a checkpoint; don't change it."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    path = Path(_ROOT.name) / family
    torch_model(family).save_pretrained(path)
    tokenizer().save(str(path / "tokenizer.json"))
    size = {"shortest_edge": 4 * 4, "longest_edge": 1 << 20}
    Qwen2VLImageProcessorPil(patch_size=PATCH, merge_size=MERGE, size=size).save_pretrained(path)
    return path


@functools.cache
def torch_model(family: str) -> Any:
    """Return the module, in eval mode, with attention that is neither flat nor saturated."""
    from transformers import AutoModelForImageTextToText

    made = config(family)
    made._attn_implementation = "eager"
    auto: Any = AutoModelForImageTextToText
    model = auto.from_config(made).eval()
    fill(model, torch.Generator().manual_seed(7))
    return model


def tokenizer() -> Tokenizer:
    """Return a tokenizer of single characters; what it lacks is one unknown token."""
    words = {token: number for number, token in enumerate([*SPECIAL, "<unk>", *map(chr, range(32, 96))])}
    result = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    result.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    result.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return result
