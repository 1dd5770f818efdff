"""llava-hf/bakLLaVA-v1-hf: LLaVA's model_type over Mistral with its window, and llava-hf/vip-llava-7b-hf."""

from __future__ import annotations

from pathlib import Path

import torch

from hub_layouts import clip, llava_1_5
from hub_layouts.checkpoint_files import OLD_LLAVA, write_json, write_weights
from hub_layouts.layout import Layout


def _bakllava(folder: Path, layers: int) -> None:
    # Sizes that MistralConfig's defaults give are said, as in llava_1_5.text; so is the window, 4096 on the hub.
    text = {
        "_name_or_path": "mistralai/Mistral-7B-v0.1",
        "architectures": ["MistralForCausalLM"],
        "intermediate_size": 96,
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-05,
        "sliding_window": 4096,
        "torch_dtype": "float16",
        "vocab_size": llava_1_5.VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
    }
    write_json(
        folder,
        config=llava_1_5.config(
            layers, text_config=text, vision_config=clip.tower(3), transformers_version="4.37.0.dev0"
        ),
        generation_config={"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2},
        preprocessor_config=clip.processor(processor_class="LlavaProcessor"),
        processor_config={
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
            "patch_size": clip.PATCH,
            "processor_class": "LlavaProcessor",
            "vision_feature_select_strategy": "default",
        },
        chat_template={"chat_template": llava_1_5.TEMPLATE},
    )
    llava_1_5.write_tokenizer(folder)
    silent = (0, 1, 2, llava_1_5.IMAGE, llava_1_5.PAD)
    write_weights(folder, OLD_LLAVA, dtype=torch.float16, silent=silent, shards=4)


def _vip(folder: Path, layers: int) -> None:
    whole = llava_1_5.config(layers, architectures=["VipLlavaForConditionalGeneration"], model_type="vipllava")
    for name in ("vision_feature_layer", "vision_feature_select_strategy"):
        whole.pop(name)
    tower = clip.tower(13)
    layers = {"projector_layernorm_eps": 1e-05, "vision_feature_layers": [-2, -5, -8, -11, 6]}
    write_json(
        folder,
        config=whole | layers | {"vision_config": tower},
        generation_config={"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2},
        preprocessor_config=clip.processor(processor_class="LlavaProcessor"),
    )
    llava_1_5.write_tokenizer(folder)
    write_weights(folder, OLD_LLAVA, dtype=torch.float16, silent=())


LAYOUTS = (
    Layout(
        name="bakLLaVA-v1-hf",
        hub_id="llava-hf/bakLLaVA-v1-hf",
        family="llava",
        write=_bakllava,
        commands=("plain", "ficoco-v"),
    ),
    Layout(
        name="vip-llava-7b-hf",
        hub_id="llava-hf/vip-llava-7b-hf",
        write=_vip,
        line=("vipllava", "llava"),
    ),
)
