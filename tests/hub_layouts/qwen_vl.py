"""Qwen's own: Qwen2-VL and Qwen2.5-VL with their flat configuration, and Qwen3-VL."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from hub_layouts import clip, qwen_text
from hub_layouts.checkpoint_files import Renames, write_json, write_weights
from hub_layouts.layout import Layout

_END, _STOP = qwen_text.cut(151643), qwen_text.cut(151645)
_IDS = {
    "vision_start_token_id": qwen_text.cut(151652),
    "vision_end_token_id": qwen_text.cut(151653),
    "image_token_id": qwen_text.cut(151655),
    "video_token_id": qwen_text.cut(151656),
}
_VOCABULARY = qwen_text.cut(151936)
_FLAT: Renames = ((r"^model\.language_model\.", "model."), (r"^model\.visual\.", "visual."))
_PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
_CLIP = "<|vision_start|><|video_pad|><|vision_end|>"
_PARTS = (
    "{{ '<|im_start|>' + turn['role'] + '\n' }}"
    "{% if turn['content'] is string %}{{ turn['content'] }}{% else %}{% for part in turn['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}"
    "{% set count.value = count.value + 1 %}"
    "{% if add_vision_id %}{{ 'Picture ' ~ count.value ~ ': ' }}{% endif %}"
    + _PICTURE
    + "{% elif part['type'] == 'video' or 'video' in part %}"
    + _CLIP
    + "{% elif 'text' in part %}"
    "{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# A system message of its own where nobody wrote one.
_WITH_SYSTEM = (
    "{% set count = namespace(value=0) %}{% for turn in messages %}"
    "{% if loop.first and turn['role'] != 'system' %}<|im_start|>system\nAnswer kindly.<|im_end|>\n{% endif %}" + _PARTS
)
_WITHOUT = "{% set count = namespace(value=0) %}{% for turn in messages %}" + _PARTS


def _files(folder: Path, *, processor: str, generation: dict[str, Any], images: dict[str, Any], plain: bool) -> None:
    write_json(
        folder,
        generation_config={"bos_token_id": _END, "pad_token_id": _END, "eos_token_id": [_STOP, _END]}
        | {"do_sample": True, "transformers_version": "4.37.0", **generation},
        preprocessor_config={"merge_size": 2, "temporal_patch_size": 2, "processor_class": processor, **images},
    )
    tools = qwen_text.TOOLS if plain else []
    qwen_text.write_tokenizer(folder, [*qwen_text.VISION, *tools], plain=tools, chat_template=_WITH_SYSTEM)


def _flat(folder: Path, layers: int, *, tower: dict[str, Any], own: dict[str, Any], model: str, **files: Any) -> None:
    """Write the flat configuration, the text model's keys beside the vision tower's part."""
    name = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL"}[model]
    write_json(
        folder,
        config={
            "architectures": [f"{name}ForConditionalGeneration"],
            "attention_dropout": 0.0,
            "bos_token_id": _END,
            "eos_token_id": _STOP,
            **_IDS,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "max_window_layers": 28,
            "model_type": model,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "sliding_window": 32768,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.41.2",
            "use_cache": True,
            "use_sliding_window": False,
            "vision_token_id": qwen_text.cut(151654),
            "vision_config": tower,
            "rope_scaling": {"type": "mrope", "mrope_section": [1, 2, 1]},
            "vocab_size": _VOCABULARY,
            **qwen_text.decoder(layers),
            **own,
        },
        chat_template={"chat_template": _WITH_SYSTEM},
    )
    _files(folder, **files)
    write_weights(folder, _FLAT, dtype=torch.bfloat16, silent=range(_END, _VOCABULARY), shards=2)


_CLIP_PICTURES = {"image_mean": clip.MEAN, "image_std": clip.STD, "patch_size": 14}
_qwen2 = functools.partial(
    _flat,
    model="qwen2_vl",
    tower={
        "depth": 2,
        "embed_dim": 32,
        "mlp_ratio": 4,
        "num_heads": 2,
        "in_chans": 3,
        "hidden_size": 32,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    },
    own={"max_position_embeddings": 32768},
    processor="Qwen2VLProcessor",
    generation={"temperature": 0.01, "top_k": 1, "top_p": 0.001},
    images=_CLIP_PICTURES
    | {"min_pixels": 3136, "max_pixels": 12845056, "image_processor_type": "Qwen2VLImageProcessor"},
    plain=False,
)
_qwen2_5 = functools.partial(
    _flat,
    model="qwen2_5_vl",
    # Windows of 56 pixels instead of 112.
    tower={
        "depth": 2,
        "hidden_act": "silu",
        "hidden_size": 32,
        "intermediate_size": 44,
        "num_heads": 2,
        "in_chans": 3,
        "out_hidden_size": 32,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 56,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
    own={"max_position_embeddings": 128000, "max_window_layers": 70},
    processor="Qwen2_5_VLProcessor",
    generation={"repetition_penalty": 1.05, "temperature": 1e-06},
    images=_CLIP_PICTURES
    | {"min_pixels": 3136, "max_pixels": 12845056, "image_processor_type": "Qwen2VLImageProcessor"},
    plain=True,
)


def _qwen3(folder: Path, layers: int) -> None:
    """Write Qwen3-VL: parts side by side, features at several depths, interleaved frequencies."""
    write_json(
        folder,
        config={
            "architectures": ["Qwen3VLForConditionalGeneration"],
            **_IDS,
            "model_type": "qwen3_vl",
            "text_config": {
                "attention_bias": False,
                "attention_dropout": 0.0,
                "bos_token_id": _END,
                "dtype": "bfloat16",
                "eos_token_id": _STOP,
                "head_dim": 16,
                "hidden_act": "silu",
                "initializer_range": 0.02,
                "max_position_embeddings": 262144,
                "model_type": "qwen3_vl_text",
                "rms_norm_eps": 1e-06,
                "rope_scaling": {"mrope_interleaved": True, "mrope_section": [4, 2, 2], "rope_type": "default"},
                "rope_theta": 5000000,
                "tie_word_embeddings": True,
                "use_cache": True,
                "vocab_size": _VOCABULARY,
                **qwen_text.decoder(layers),
            },
            "tie_word_embeddings": True,
            "transformers_version": "4.57.0.dev0",
            "vision_config": {
                "deepstack_visual_indexes": [0, 1],
                "depth": 3,
                "hidden_act": "gelu_pytorch_tanh",
                "hidden_size": 32,
                "in_channels": 3,
                "initializer_range": 0.02,
                "intermediate_size": 48,
                "model_type": "qwen3_vl",
                "num_heads": 2,
                "num_position_embeddings": 25,
                "out_hidden_size": 32,
                "patch_size": 16,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
            },
        },
        chat_template={"chat_template": _WITHOUT},
    )
    _files(
        folder,
        processor="Qwen3VLProcessor",
        generation={"top_k": 20, "top_p": 0.8, "repetition_penalty": 1.0, "temperature": 0.7},
        # At least 65536 pixels on the hub.
        images={"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "patch_size": 16}
        | {
            "size": {"longest_edge": 16777216, "shortest_edge": 4096},
            "image_processor_type": "Qwen2VLImageProcessorFast",
        },
        plain=True,
    )
    write_weights(folder, (), dtype=torch.bfloat16, silent=range(_END, _VOCABULARY))


_COMMON: dict[str, Any] = {"refused": {"ficoco-v": "2 x 2 patches"}}
# A picture of the size that the export fixes.
_56 = {"export": {"image_size": (56, 112)}, "picture": (112, 56)}
LAYOUTS = (
    Layout(
        name="Qwen2-VL-2B-Instruct",
        hub_id="Qwen/Qwen2-VL-2B-Instruct",
        family="qwen2_vl",
        write=_qwen2,
        commands=("plain", "int8"),
        **_56,
        **_COMMON,
    ),
    Layout(
        name="Qwen2.5-VL-3B-Instruct",
        hub_id="Qwen/Qwen2.5-VL-3B-Instruct",
        family="qwen2_5_vl",
        write=_qwen2_5,
        commands=("plain", "divprune"),
        **_56,
        **_COMMON,
    ),
    Layout(
        name="Qwen3-VL-2B-Instruct",
        hub_id="Qwen/Qwen3-VL-2B-Instruct",
        family="qwen3_vl",
        write=_qwen3,
        export={"image_size": (64, 96)},
        picture=(96, 64),
        commands=("plain", "divprune"),
        layers=2,
        **_COMMON,
    ),
)
