"""llava-hf's checkpoints with a Qwen decoder: OneVision 0.5B and Interleave 0.5B."""

from __future__ import annotations

from pathlib import Path

import torch

from hub_layouts import qwen_text, siglip
from hub_layouts.checkpoint_files import OLD_LLAVA, write_json, write_weights
from hub_layouts.layout import Layout

IMAGE, VIDEO = qwen_text.cut(151646), qwen_text.cut(151647)
VOCABULARY = qwen_text.cut(152000)
_SIDE = siglip.SIDE
_END, _STOP = qwen_text.cut(151643), qwen_text.cut(151645)
# The picture stands on the line of the role, and nothing but the role ends the answer's line.
TEMPLATE = (
    "{% for turn in messages %}{{ '<|im_start|>' + turn['role'] + ' ' }}"
    "{% for part in turn['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for part in turn['content'] | selectattr('type', 'equalto', 'video') %}{{ '<video>' }}{% endfor %}"
    "{% for part in turn['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% if turn['role'] == 'assistant' %}{% generation %}{{ '\n' + part['text'] }}{% endgeneration %}"
    "{% else %}{{ '\n' + part['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_GENERATION = {"_from_model_config": True, "bos_token_id": _END, "eos_token_id": _STOP}


def _onevision(folder: Path, layers: int) -> None:
    """Write OneVision: a tied decoder whose head isn't in the file, tiles in many grids, videos too."""
    pinpoints = [[rows * _SIDE, columns * _SIDE] for rows in range(1, 7) for columns in range(1, 7)]
    write_json(
        folder,
        config={
            "architectures": ["LlavaOnevisionForConditionalGeneration"],
            "ignore_index": -100,
            "image_grid_pinpoints": pinpoints,
            "image_token_index": IMAGE,
            "model_type": "llava_onevision",
            "projector_hidden_act": "gelu",
            "text_config": {
                "_name_or_path": "Qwen/Qwen2-0.5B-Instruct",
                "architectures": ["Qwen2ForCausalLM"],
                "bos_token_id": _END,
                "eos_token_id": _STOP,
                "max_window_layers": 24,
                "model_type": "qwen2",
                "rope_theta": 1000000.0,
                "tie_word_embeddings": True,
                "torch_dtype": "bfloat16",
                "vocab_size": VOCABULARY,
                **qwen_text.decoder(layers),
            },
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "transformers_version": "4.45.0.dev0",
            "use_image_newline_parameter": True,
            "video_token_index": VIDEO,
            "vision_aspect_ratio": "anyres_max_9",
            "vision_config": siglip.tower(2),
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
        },
        generation_config=_GENERATION | {"transformers_version": "4.45.0.dev0"},
        preprocessor_config=siglip.processor(
            do_pad=True,
            image_grid_pinpoints=pinpoints,
            image_processor_type="LlavaOnevisionImageProcessor",
            processor_class="LlavaOnevisionProcessor",
        ),
        video_preprocessor_config=siglip.processor(
            image_processor_type="LlavaOnevisionVideoProcessor", processor_class="LlavaOnevisionProcessor"
        ),
        processor_config={
            "image_token": "<image>",
            "num_image_tokens": (_SIDE // siglip.PATCH) ** 2,
            "processor_class": "LlavaOnevisionProcessor",
            "video_token": "<video>",
            "vision_aspect_ratio": "anyres_max_9",
            "vision_feature_select_strategy": "full",
        },
        chat_template={"chat_template": TEMPLATE},
    )
    qwen_text.write_tokenizer(folder, ["<image>", "<video>"], processor_class="LlavaOnevisionProcessor")
    write_weights(folder, OLD_LLAVA, dtype=torch.float16, silent=(_END, _END + 1, _STOP, IMAGE, VIDEO))


def _interleave(folder: Path, layers: int) -> None:
    """Write Interleave: LLaVA's model_type with SigLIP and Qwen1.5, whose windows are switched off."""
    write_json(
        folder,
        config={
            "architectures": ["LlavaForConditionalGeneration"],
            "ignore_index": -100,
            "image_token_index": IMAGE,
            "model_type": "llava",
            "projector_hidden_act": "gelu",
            "text_config": {
                "_name_or_path": "Qwen/Qwen1.5-0.5B-Chat",
                "architectures": ["Qwen2ForCausalLM"],
                "max_window_layers": 21,
                "model_type": "qwen2",
                "sliding_window": 32768,
                "tie_word_embeddings": True,
                "torch_dtype": "bfloat16",
                "use_sliding_window": False,
                "vocab_size": VOCABULARY,
                **qwen_text.decoder(layers, num_key_value_heads=4),
            },
            "torch_dtype": "float16",
            "transformers_version": "4.42.0.dev0",
            "vision_config": siglip.tower(2),
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
        },
        generation_config=_GENERATION | {"transformers_version": "4.42.0.dev0"},
        preprocessor_config=siglip.processor(processor_class="LlavaProcessor"),
        processor_config={
            "image_token": "<image>",
            "num_additional_image_tokens": 0,
            "patch_size": siglip.PATCH,
            "processor_class": "LlavaProcessor",
            "vision_feature_select_strategy": "full",
        },
        chat_template={"chat_template": TEMPLATE},
    )
    qwen_text.write_tokenizer(folder, ["<image>"], processor_class="LlavaProcessor")
    write_weights(folder, OLD_LLAVA, dtype=torch.float16, silent=(_END, _END + 1, _STOP, IMAGE))


LAYOUTS = (
    Layout(
        name="llava-onevision-qwen2-0.5b-ov-hf",
        hub_id="llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
        family="llava_onevision",
        write=_onevision,
        export={"tiles": (2, 2)},
        picture=(2 * _SIDE, 2 * _SIDE),
        refused={"ficoco-v": "tiles"},
        commands=("plain", "divprune"),
    ),
    Layout(
        name="llava-interleave-qwen-0.5b-hf",
        hub_id="llava-hf/llava-interleave-qwen-0.5b-hf",
        family="llava",
        write=_interleave,
        commands=("plain", "float16"),
    ),
)
