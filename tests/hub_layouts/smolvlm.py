"""HuggingFaceTB's SmolVLM-256M and 500M, and SmolVLM2."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from hub_layouts.checkpoint_files import write_json, write_weights
from hub_layouts.layout import Layout
from hub_layouts.tokenizer_files import BYTE_TOKENS, added, decoder_rows, write_gpt2

SIDE = 64
_ROWS = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
_FIRST = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>", "<filename>"]
_FIRST += ["<gh_stars>", "<issue_start>", "<issue_comment>", "<issue_closed>", "<jupyter_start>", "<jupyter_text>"]
_FIRST += ["<jupyter_code>", "<jupyter_output>", "<jupyter_script>", "<empty_output>"]
_LAST = ["<global-img>", *_ROWS, "<fake_token_around_image>", "<image>"]
_LAST += [f"<|reserved_special_token_{n}|>" for n in range(4)] + ["<end_of_utterance>"]
_GLOBAL = len(_FIRST) + BYTE_TOKENS
IMAGE, UTTERANCE = _GLOBAL + _LAST.index("<image>"), _GLOBAL + len(_LAST) - 1
VOCABULARY = _GLOBAL + len(_LAST)
# The role, a colon, and a blank unless a picture follows; one special token ends each turn.
TURNS = (
    "{% for turn in messages %}{{ turn['role'] | capitalize }}"
    "{% if turn['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for part in turn['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def _text(layers: int) -> dict[str, Any]:
    return {
        "_flash_attn_2_enabled": True,
        "architectures": ["VLlama3ForCausalLM"],
        "head_dim": 8,
        "hidden_size": 24,
        "intermediate_size": 48,
        "is_llama_config": True,
        "max_position_embeddings": 8192,
        "model_type": "llama",
        "neftune_noise_alpha": 0.0,
        "num_attention_heads": 3,
        "num_hidden_layers": layers,
        "num_key_value_heads": 1,
        "pad_token_id": 2,
        "perceiver_config": {"attention_dropout": 0.0, "hidden_act": "silu", "model_type": "vllama3"},
        "pixel_shuffle_factor": 4,
        "qk_layer_norms": False,
        "rms_norm_eps": 1e-05,
        "rope_interleaved": False,
        "rope_theta": 100000,
        "torch_dtype": "bfloat16",
        "use_resampler": False,
        "vocab_size": VOCABULARY,
    }


def _tower(**more: Any) -> dict[str, Any]:
    # SmolVLM2 leaves depth and width of the MLP to the defaults (12 and 3072); so large they can't be here.
    return {
        "hidden_size": 32,
        "image_size": SIDE,
        "max_image_size": {"longest_edge": SIDE},
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "intermediate_size": 48,
        "patch_size": 4,
        "size": {"longest_edge": 4 * SIDE},
        "tie_word_embeddings": False,
        "use_base_siglip": False,
        **more,
    }


def preprocessor(name: str, **more: Any) -> dict[str, Any]:
    """Return ``preprocessor_config.json`` of a class's images."""
    switches = ("convert_rgb", "image_splitting", "normalize", "pad", "rescale", "resize")
    return {
        **{f"do_{switch}": True for switch in switches},
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": f"{name}ImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "max_image_size": {"longest_edge": SIDE},
        "processor_class": f"{name}Processor",
        "resample": 1,
        "rescale_factor": 0.00392156862745098,
        "size": {"longest_edge": 4 * SIDE},
        **more,
    }


def _tokenizer(folder: Path, **more: Any) -> None:
    rows = [added(index, token) for index, token in enumerate(_FIRST)]
    rows += [added(_GLOBAL + index, token) for index, token in enumerate(_LAST)]
    write_gpt2(folder, _FIRST, rows)
    special = ["<fake_token_around_image>", "<image>", "<end_of_utterance>"]
    write_json(
        folder,
        tokenizer_config={
            "add_prefix_space": False,
            "added_tokens_decoder": decoder_rows(rows),
            "additional_special_tokens": special,
            "bos_token": "<|im_start|>",
            "clean_up_tokenization_spaces": False,
            "eos_token": "<end_of_utterance>",
            "legacy": False,
            "model_max_length": 8192,
            "pad_token": "<|im_end|>",
            "tokenizer_class": "GPT2Tokenizer",
            "truncation_side": "left",
            "unk_token": "<|endoftext|>",
            "vocab_size": len(_FIRST) + BYTE_TOKENS,
            **more,
        },
        special_tokens_map={
            "additional_special_tokens": special,
            "bos_token": "<|im_start|>",
            "eos_token": "<end_of_utterance>",
            "pad_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
        },
        added_tokens={row["content"]: row["id"] for row in rows if row["id"] >= _GLOBAL},
    )


def _smolvlm(folder: Path, layers: int, *, tower: str) -> None:
    """Write SmolVLM: its template begins with the start token, spelled out; its end is another than the text's."""
    write_json(
        folder,
        config={
            "architectures": ["Idefics3ForConditionalGeneration"],
            "image_token_id": IMAGE,
            "model_type": "idefics3",
            "pad_token_id": 2,
            "scale_factor": 4,
            "text_config": _text(layers),
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.46.0",
            "use_cache": True,
            "vision_config": _tower(model_type=tower, torch_dtype="bfloat16"),
            "vocab_size": VOCABULARY,
        },
        generation_config={
            "_from_model_config": True,
            "bos_token_id": 0,
            "eos_token_id": UTTERANCE,
            "pad_token_id": 2,
            "transformers_version": "4.46.0",
        },
        preprocessor_config=preprocessor("Idefics3"),
        processor_config={"image_seq_len": 16, "processor_class": "Idefics3Processor"},
        chat_template={"chat_template": "<|im_start|>" + TURNS},
    )
    _tokenizer(folder, processor_class="Idefics3Processor")
    write_weights(folder, (), dtype=torch.bfloat16, silent=[0, 1, 2, *range(_GLOBAL, VOCABULARY)])


def _smolvlm2(folder: Path, layers: int) -> None:
    """Write SmolVLM2: another model_type, videos, and types that differ between the whole and its part."""
    write_json(
        folder,
        config={
            "architectures": ["SmolVLMForConditionalGeneration"],
            "image_token_id": IMAGE,
            "model_type": "smolvlm",
            "pad_token_id": 2,
            "scale_factor": 4,
            "text_config": _text(layers),
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
            "transformers_version": "4.47.1",
            "use_cache": False,
            "use_reentrant_checkpointing": False,
            "vision_config": _tower(model_type="smolvlm_vision"),
            "vocab_size": VOCABULARY,
        },
        generation_config={"_from_model_config": True, "bos_token_id": 1, "eos_token_id": UTTERANCE, "pad_token_id": 2},
        preprocessor_config=preprocessor(
            "SmolVLM",
            video_sampling={"fps": 1, "max_frames": 64, "video_size": {"longest_edge": SIDE}},
        ),
        processor_config={"image_seq_len": 16, "processor_class": "SmolVLMProcessor"},
        chat_template={"chat_template": "<|im_start|>" + TURNS},
    )
    _tokenizer(folder, processor_class="SmolVLMProcessor")
    write_weights(folder, (), dtype=torch.float32, silent=[0, 1, 2, *range(_GLOBAL, VOCABULARY)])


COMMON: dict[str, Any] = {
    "call": {"do_image_splitting": False},
    "refused": {"ficoco-v": r"\d x \d patches"},
}
LAYOUTS = (
    Layout(
        name="SmolVLM-256M-Instruct",
        hub_id="HuggingFaceTB/SmolVLM-256M-Instruct",
        family="idefics3",
        write=functools.partial(_smolvlm, tower="siglip_vision_model"),
        **COMMON,
    ),
    Layout(
        name="SmolVLM-500M-Instruct",
        hub_id="HuggingFaceTB/SmolVLM-500M-Instruct",
        family="idefics3",
        write=functools.partial(_smolvlm, tower="idefics3"),
        **COMMON,
    ),
    Layout(
        name="SmolVLM2-256M-Video-Instruct",
        hub_id="HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
        family="smolvlm",
        write=_smolvlm2,
        commands=("plain", "int8"),
        **COMMON,
    ),
)
