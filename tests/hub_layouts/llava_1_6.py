"""llava-hf/llava-v1.6-vicuna-7b-hf and llava-v1.6-mistral-7b-hf: tiles, and a template in a file of JSON."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hub_layouts import clip, llava_1_5
from hub_layouts.checkpoint_files import OLD_LLAVA, write_json, write_weights
from hub_layouts.layout import Layout

SIDE = clip.SIDE
PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE], [3 * SIDE, SIDE], [SIDE, 3 * SIDE]]
_PICTURES = (
    "{% for part in turn['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in turn['content'] | selectattr('type', 'equalto', 'text') %}"
)
# Vicuna's line about both speakers first, though nobody wrote a system message.
VICUNA = (
    "{% set first = 'Someone curious talks with an assistant, who answers in a friendly way. ' %}{{ first }}"
    "{% for turn in messages %}{{ turn['role'] | upper + ': ' }}"
    + _PICTURES
    + "{{ part['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
# Instructions in brackets; what begins the answer is the bracket's end.
MISTRAL = (
    "{% for turn in messages %}{% if turn['role'] == 'user' %}{{ '[INST] ' }}"
    + _PICTURES
    + "{{ part['text'] }}{% endfor %}{{ ' [/INST]' }}"
    "{% elif turn['role'] == 'assistant' %}{{ ' ' + turn['content'][0]['text'] + '<\\s> ' }}{% endif %}{% endfor %}"
)
# The tokenizer keeps the text model's own template, which knows no pictures and writes BOS.
_TEXT_ONLY = (
    "{{ bos_token }}{% for turn in messages %}{% if turn['role'] == 'user' %}"
    "{{ '[INST] ' + turn['content'] + ' [/INST]' }}{% else %}{{ turn['content'] + eos_token }}{% endif %}{% endfor %}"
)


def _mistral(layers: int) -> dict[str, Any]:
    """Return ``text_config``; the sizes that MistralConfig's defaults give are said, as in ``llava_1_5.text``."""
    return {
        "_name_or_path": "mistralai/Mistral-7B-Instruct-v0.2",
        "architectures": ["MistralForCausalLM"],
        "intermediate_size": 96,
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "torch_dtype": "bfloat16",
        "vocab_size": llava_1_5.VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
    }


def _write(
    folder: Path, layers: int, *, text: Callable[[int], dict[str, Any]], template: str, settings: dict[str, Any]
) -> None:
    whole = {
        "architectures": ["LlavaNextForConditionalGeneration"],
        "ignore_index": -100,
        "image_grid_pinpoints": PINPOINTS,
        "image_token_index": llava_1_5.IMAGE,
        "model_type": "llava_next",
        "projector_hidden_act": "gelu",
        "text_config": text(layers),
        "torch_dtype": "float16",
        "transformers_version": "4.39.0.dev0",
        "use_image_newline_parameter": True,
        "vision_config": clip.tower(3),
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vocab_size": llava_1_5.VOCABULARY,
        "tie_word_embeddings": False,
        "image_seq_length": 16,
    }
    write_json(
        folder,
        config=whole,
        generation_config={"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2},
        preprocessor_config=clip.processor(
            aspect_ratio_setting="anyres",
            do_pad=True,
            image_grid_pinpoints=PINPOINTS,
            image_processor_type="LlavaNextImageProcessor",
            processor_class="LlavaNextProcessor",
        ),
        processor_config={
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
            "patch_size": clip.PATCH,
            "processor_class": "LlavaNextProcessor",
            "vision_feature_select_strategy": "default",
        },
        chat_template={"chat_template": template},
    )
    llava_1_5.write_tokenizer(folder, processor_class="LlavaNextProcessor", **settings)
    silent = (0, 1, 2, llava_1_5.IMAGE, llava_1_5.PAD)
    write_weights(folder, OLD_LLAVA, dtype=torch.float16, silent=silent, shards=4)


_COMMON: dict[str, Any] = {
    "family": "llava_next",
    # The export's grid is the picture's best one, and the picture fills it: no patch is padding.
    "export": {"tiles": (2, 2)},
    "picture": (4 * SIDE, 4 * SIDE),
    "refused": {"ficoco-v": "tiles"},
}
LAYOUTS = (
    Layout(
        name="llava-v1.6-vicuna-7b-hf",
        hub_id="llava-hf/llava-v1.6-vicuna-7b-hf",
        write=functools.partial(_write, text=llava_1_5.text, template=VICUNA, settings={"legacy": False}),
        **_COMMON,
    ),
    Layout(
        name="llava-v1.6-mistral-7b-hf",
        hub_id="llava-hf/llava-v1.6-mistral-7b-hf",
        write=functools.partial(
            _write, text=_mistral, template=MISTRAL, settings={"legacy": True, "chat_template": _TEXT_ONLY}
        ),
        commands=("plain", "divprune", "ficoco-v"),
        **_COMMON,
    ),
)
