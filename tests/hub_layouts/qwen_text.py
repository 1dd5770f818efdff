"""Qwen2's tokenizer, ids and decoder, as LLaVA's, InternVL's and Qwen's own checkpoints have them.

The vocabulary is cut to its first tokens, so that every special id lies lower by the same number.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hub_layouts.checkpoint_files import write_json
from hub_layouts.tokenizer_files import BYTE_TOKENS, added, decoder_rows, write_qwen

_CUT = 151643 - BYTE_TOKENS
VISION = [
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
"""Special tokens behind ChatML's three, from 151646 on."""
TOOLS = ["<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
TOOLS += ["<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"]
"""Tokens of Qwen2.5 behind them, from 151657 on; they aren't special."""


def cut(index: int) -> int:
    """Return the id that stands here for one of the whole vocabulary."""
    return index - _CUT


def write_tokenizer(folder: Path, special: list[str], *, plain: list[str] | None = None, **more: Any) -> int:
    """Write the tokenizer's files and return how many ids there are.

    Args:
        folder: Where.
        special: Special tokens behind <|endoftext|>, <|im_start|> and <|im_end|>.
        plain: Among them, those that are added, but not special.
        more: Further keys of tokenizer_config.json.
    """
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *special]
    rows = [added(BYTE_TOKENS + n, name, special=name not in (plain or [])) for n, name in enumerate(names)]
    write_qwen(folder, rows)
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": decoder_rows(rows),
        "additional_special_tokens": [name for name in names[1:] if name not in (plain or [])],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 32768,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    write_json(
        folder,
        tokenizer_config=config | more,
        added_tokens={row["content"]: row["id"] for row in rows},
        special_tokens_map={
            "additional_special_tokens": config["additional_special_tokens"],
            "eos_token": {"content": "<|im_end|>", "lstrip": False, "normalized": False, "rstrip": False}
            | {"single_word": False},
            "pad_token": {"content": "<|endoftext|>", "lstrip": False, "normalized": False, "rstrip": False}
            | {"single_word": False},
        },
    )
    return BYTE_TOKENS + len(names)


def decoder(layers: int, **more: Any) -> dict[str, Any]:
    """Return the sizes of a small decoder."""
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_hidden_layers": layers,
        "num_key_value_heads": 2,
        **more,
    }
