"""OpenGVLab/InternVL3-1B-hf and InternVL3_5-1B-HF, transformers' own port; and InternVL's original with its code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hub_layouts import qwen_text
from hub_layouts.checkpoint_files import OLD_LLAVA, write_json, write_weights
from hub_layouts.layout import Layout

SIDE = 56
_END, _STOP = qwen_text.cut(151643), qwen_text.cut(151645)
_MARKS = ["<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"]
# ChatML; a picture is its marker on a line of its own.
TEMPLATE = (
    "{% for turn in messages %}{{ '<|im_start|>' + turn['role'] + '\n' }}"
    "{% if turn['content'] is string %}{{ turn['content'] }}{% else %}{% for part in turn['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif part['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_NAMES = ((r"^model\.vision_tower\.", "vision_tower."), *OLD_LLAVA[1:])


def _tower() -> dict[str, Any]:
    return {
        "architectures": ["InternVLVisionModel"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": 32,
        "image_size": [SIDE, SIDE],
        "initializer_factor": 0.1,
        "initializer_range": 1e-10,
        "intermediate_size": 48,
        "layer_norm_eps": 1e-06,
        "layer_scale_init_value": 0.1,
        "model_type": "internvl_vision",
        "norm_type": "layer_norm",
        "num_attention_heads": 4,
        "num_channels": 3,
        "num_hidden_layers": 2,
        "patch_size": [14, 14],
        "projection_dropout": 0.0,
        "torch_dtype": "bfloat16",
        "use_absolute_position_embeddings": True,
        "use_mask_token": False,
        "use_mean_pooling": True,
        "use_qk_norm": False,
    }


def _text(**more: Any) -> dict[str, Any]:
    return {
        "attention_dropout": 0.0,
        "bos_token_id": _END,
        "eos_token_id": _STOP,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        **more,
    }


def _write(
    folder: Path, text: dict[str, Any], special: list[str], *, version: str, plain: list[str], change: Any = dict
) -> None:
    image = qwen_text.BYTE_TOKENS + 3 + special.index("<IMG_CONTEXT>")
    write_json(
        folder,
        config={
            "architectures": ["InternVLForConditionalGeneration"],
            "downsample_ratio": 0.5,
            "image_seq_length": 4,
            "image_token_id": image,
            "model_type": "internvl",
            "projector_hidden_act": "gelu",
            "text_config": text,
            "torch_dtype": "bfloat16",
            "transformers_version": version,
            "vision_config": _tower(),
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "default",
        },
        generation_config={"_from_model_config": True, "bos_token_id": _END, "eos_token_id": _STOP},
        preprocessor_config={
            "crop_size": None,
            "crop_to_patches": False,
            "data_format": "channels_first",
            "default_to_square": True,
            "device": None,
            "do_center_crop": None,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.485, 0.456, 0.406],
            "image_processor_type": "GotOcr2ImageProcessorFast",
            "image_std": [0.229, 0.224, 0.225],
            "input_data_format": None,
            "max_patches": 12,
            "min_patches": 1,
            "processor_class": "InternVLProcessor",
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "return_tensors": None,
            "size": {"height": SIDE, "width": SIDE},
        },
        processor_config={"image_seq_length": 4, "processor_class": "InternVLProcessor"},
    )
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    marks = {"context_image_token": "<IMG_CONTEXT>", "end_image_token": "</img>", "start_image_token": "<img>"}
    marks["video_token"] = "<video>"
    qwen_text.write_tokenizer(
        folder, special, plain=plain, processor_class="InternVLProcessor", extra_special_tokens=marks, **marks
    )
    silent = range(qwen_text.BYTE_TOKENS, text["vocab_size"])
    write_weights(folder, _NAMES, dtype=torch.bfloat16, silent=list(silent), change=change, seed=6)


def _with_head(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Add a head that isn't the embedding, though the configuration leaves ties to a default that says so."""
    name = "language_model.model.embed_tokens.weight"
    head = torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(6)) / 5
    head[tensors[name].abs().sum(1) == 0] = 0
    return tensors | {"language_model.lm_head.weight": head.to(tensors[name].dtype)}


def _three(folder: Path, layers: int) -> None:
    """Write InternVL3: frequencies that change with the length, ties left to a default, and a head of its own."""
    special = [*qwen_text.VISION, *qwen_text.TOOLS, *_MARKS, "<video>"]
    text = _text(
        **qwen_text.decoder(layers),
        architectures=["Qwen2ForCausalLM"],
        max_position_embeddings=32768,
        max_window_layers=70,
        model_type="qwen2",
        rope_scaling={"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
        # 151674 on the hub; not confirmed is where it has <video>, which is one more here.
        vocab_size=qwen_text.cut(151674) + 1,
    )
    _write(folder, text, special, version="4.52.0.dev0", plain=qwen_text.TOOLS, change=_with_head)


def _three_five(folder: Path, layers: int) -> None:
    """Write InternVL3.5: Qwen3's decoder and four special tokens more before InternVL's."""
    thinking = ["<tool_response>", "</tool_response>", "<think>", "</think>"]
    special = [*qwen_text.VISION, *qwen_text.TOOLS, *thinking, *_MARKS, "<video>"]
    text = _text(
        **qwen_text.decoder(layers),
        architectures=["Qwen3ForCausalLM"],
        attention_bias=False,
        head_dim=16,
        layer_types=["full_attention"] * layers,
        max_position_embeddings=40960,
        max_window_layers=28,
        model_type="qwen3",
        rope_scaling=None,
        vocab_size=qwen_text.cut(151936),
    )
    _write(folder, text, special, version="4.56.0.dev0", plain=[*qwen_text.TOOLS, *thinking])


def _original(folder: Path, layers: int) -> None:
    """Write what says whose model it is: its code and its own names; no weights are needed to refuse it."""
    write_json(
        folder,
        config={
            "_commit_hash": None,
            "architectures": ["InternVLChatModel"],
            "auto_map": {
                "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
                "AutoModel": "modeling_internvl_chat.InternVLChatModel",
                "AutoModelForCausalLM": "modeling_internvl_chat.InternVLChatModel",
            },
            "downsample_ratio": 0.5,
            "dynamic_image_size": True,
            "force_image_size": SIDE,
            "llm_config": _text(
                **qwen_text.decoder(layers), architectures=["Qwen2ForCausalLM"], model_type="qwen2", vocab_size=2000
            ),
            "max_dynamic_patch": 12,
            "min_dynamic_patch": 1,
            "model_type": "internvl_chat",
            "ps_version": "v2",
            "select_layer": -1,
            "template": "internvl2_5",
            "torch_dtype": "bfloat16",
            "transformers_version": None,
            "use_thumbnail": True,
            "vision_config": {"architectures": ["InternVisionModel"], "model_type": "intern_vit_6b"},
        },
        generation_config={"_from_model_config": True, "transformers_version": "4.37.2"},
        preprocessor_config={"crop_size": SIDE, "do_center_crop": True, "image_processor_type": "CLIPFeatureExtractor"},
    )
    for name in ("configuration_internvl_chat.py", "modeling_internvl_chat.py"):
        (folder / name).write_text("raise SystemExit('code of a checkpoint was run')\n", encoding="utf-8")


_COMMON: dict[str, Any] = {
    "family": "internvl",
    # transformers cuts into tiles unless told not to; the family's pictures are one tile.
    "call": {"crop_to_patches": False},
    "refused": {"ficoco-v": r"\d x \d patches"},
}
LAYOUTS = (
    Layout(
        name="InternVL3-1B-hf",
        hub_id="OpenGVLab/InternVL3-1B-hf",
        write=_three,
        commands=("plain", "divprune", "ficoco-v"),
        **_COMMON,
    ),
    Layout(
        name="InternVL3_5-1B-HF",
        hub_id="OpenGVLab/InternVL3_5-1B-HF",
        write=_three_five,
        commands=("plain", "divprune"),
        **_COMMON,
    ),
    Layout(
        name="InternVL3-1B (original)",
        hub_id="OpenGVLab/InternVL3-1B",
        write=_original,
        line=("auto_map|remote code", "native|-hf"),
    ),
)
