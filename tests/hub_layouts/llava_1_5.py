"""llava-hf/llava-1.5-7b-hf through its years, and fine-tunes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hub_layouts import clip
from hub_layouts.checkpoint_files import NEW_LLAVA, OLD_LLAVA, write_json, write_weights
from hub_layouts.layout import Layout
from hub_layouts.tokenizer_files import decoder_rows, write_llama

IMAGE, PAD, VOCABULARY = 32000, 32001, 32064
EVERYTHING = ("plain", "divprune", "freepruner", "fastv", "ficoco-v", "ficoco-l", "int8", "float16")
# Pictures first, whatever their place; the roles in capitals, each followed by a colon.
TEMPLATE = (
    "{% for turn in messages %}"
    "{% if turn['role'] != 'system' %}{{ turn['role'] | upper + ': ' }}{% endif %}"
    "{# pictures before words #}"
    "{% for part in turn['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in turn['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% if turn['role'] == 'assistant' %}{% generation %}{{ part['text'] + ' ' }}{% endgeneration %}"
    "{% else %}{{ part['text'] + ' ' }}{% endif %}"
    "{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
# Processors of that time took these from nowhere; today's wants them said.
_UNSAID = {"patch_size": clip.PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}


def text(layers: int, **more: Any) -> dict[str, Any]:
    """Return ``text_config``: Vicuna, by what differs from LlamaConfig's defaults.

    The checkpoint leaves the sizes to the defaults (4096, 11008, 32, 32); so large they can't be here, and are said.
    """
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers, "num_attention_heads": 4}
    return {
        "_name_or_path": "lmsys/vicuna-7b-v1.5",
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "torch_dtype": "float16",
        "vocab_size": VOCABULARY,
        **small,
        **more,
    }


def config(layers: int, **more: Any) -> dict[str, Any]:
    """Return ``config.json`` as of December 2023."""
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": IMAGE,
        "model_type": "llava",
        "pad_token_id": PAD,
        "projector_hidden_act": "gelu",
        "text_config": text(layers),
        "torch_dtype": "float16",
        "transformers_version": "4.36.0.dev0",
        "vision_config": clip.tower(3),
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vocab_size": VOCABULARY,
        **more,
    }


def write_tokenizer(folder: Path, *, metaspace: bool = False, **more: Any) -> None:
    """Write the tokenizer's files: Llama's, with a picture's place and padding behind its 32000 pieces."""
    rows = write_llama(folder, {"<image>": IMAGE, "<pad>": PAD}, metaspace=metaspace)
    write_json(
        folder,
        tokenizer_config={
            "add_bos_token": True,
            "add_eos_token": False,
            "added_tokens_decoder": decoder_rows(rows),
            "bos_token": "<s>",
            "clean_up_tokenization_spaces": False,
            "eos_token": "</s>",
            "legacy": False,
            "model_max_length": 1000000000000000019884624838656,
            "pad_token": "<pad>",
            "padding_side": "left",
            "processor_class": "LlavaProcessor",
            "sp_model_kwargs": {},
            "tokenizer_class": "LlamaTokenizer",
            "trust_remote_code": False,
            "unk_token": "<unk>",
            "use_default_system_prompt": False,
            **more,
        },
        added_tokens={"<image>": IMAGE, "<pad>": PAD},
        special_tokens_map={
            token: {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
            for token, content in (("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>"))
        }
        | {"pad_token": "<pad>"},
    )


def _generation(**more: Any) -> dict[str, Any]:
    return {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": PAD, **more}


def _rest(folder: Path, dtype: torch.dtype, *, new_names: bool = False) -> None:
    silent = (0, 1, 2, IMAGE, PAD)
    write_weights(folder, NEW_LLAVA if new_names else OLD_LLAVA, dtype=dtype, silent=silent, shards=3)


def write_today(folder: Path, layers: int) -> None:
    """Write today's revision: the processor's own settings, and the template in a file of JSON."""
    whole = config(
        layers,
        image_seq_length=16,
        transformers_version="4.47.0.dev0",
        tie_word_embeddings=False,
    )
    whole.pop("vocab_size")
    write_json(
        folder,
        config=whole,
        generation_config=_generation(transformers_version="4.47.0.dev0"),
        preprocessor_config=clip.processor(processor_class="LlavaProcessor"),
        processor_config={
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
            "patch_size": clip.PATCH,
            "processor_class": "LlavaProcessor",
            "vision_feature_select_strategy": "default",
        },
        chat_template={"chat_template": TEMPLATE},
    )
    write_tokenizer(folder, extra_special_tokens={"image_token": "<image>"}, image_token="<image>")
    _rest(folder, torch.float16)


def _first(folder: Path, layers: int) -> None:
    """Write the first revision: no template anywhere, and nothing of the processor but the pictures' part."""
    write_json(
        folder,
        config=config(layers),
        generation_config=_generation(transformers_version="4.36.0.dev0"),
        preprocessor_config=clip.processor(processor_class="LlavaProcessor"),
    )
    write_tokenizer(folder)
    _rest(folder, torch.float16)


def _tokenizers_template(folder: Path, layers: int) -> None:
    """Write fine-tunes of 2024: bfloat16, and the template among the tokenizer's settings."""
    write_json(
        folder,
        config=config(layers, torch_dtype="bfloat16", text_config=text(layers, torch_dtype="bfloat16")),
        generation_config=_generation(transformers_version="4.41.2"),
        preprocessor_config=clip.processor(processor_class="LlavaProcessor"),
    )
    write_tokenizer(folder, chat_template=TEMPLATE)
    _rest(folder, torch.bfloat16)


def _saved_again(folder: Path, layers: int) -> None:
    """Write what transformers 5 saves: new names, one settings file for the processor, a template of its own."""
    old = config(
        layers, image_seq_length=16, tie_word_embeddings=False, multimodal_projector_bias=True, dtype="float16"
    )
    for name in ("torch_dtype", "vocab_size", "ignore_index"):
        old.pop(name)
    rope = {"rope_theta": 10000.0, "rope_type": "default"}
    words = text(layers, dtype="float16", rope_parameters=rope, num_key_value_heads=4, head_dim=8, hidden_act="silu")
    words.pop("torch_dtype")
    words.pop("_name_or_path")
    tower = clip.tower(3) | {"dtype": "float16", "hidden_act": "quick_gelu", "layer_norm_eps": 1e-05}
    write_json(
        folder,
        config=old | {"text_config": words, "vision_config": tower, "transformers_version": "5.0.0"},
        generation_config=_generation(transformers_version="5.0.0"),
        processor_config={
            "image_processor": clip.processor(),
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
            "patch_size": clip.PATCH,
            "processor_class": "LlavaProcessor",
            "vision_feature_select_strategy": "default",
        },
    )
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    write_tokenizer(folder, metaspace=True, image_token="<image>", backend="tokenizers", is_local=False)
    (folder / "added_tokens.json").unlink()
    (folder / "special_tokens_map.json").unlink()
    _rest(folder, torch.float16, new_names=True)


_HUB = "llava-hf/llava-1.5-7b-hf"
LAYOUTS = (
    Layout(name="llava-1.5-7b-hf", hub_id=_HUB, family="llava", write=write_today, commands=EVERYTHING, layers=3),
    Layout(
        name="llava-1.5-7b-hf (2023)", hub_id=_HUB, family="llava", write=_first, processor=_UNSAID, template=TEMPLATE
    ),
    Layout(
        name="llava-1.5-7b-hf (fine-tuned)",
        hub_id=_HUB,
        family="llava",
        write=_tokenizers_template,
        processor=_UNSAID,
        commands=("plain", "int8"),
    ),
    Layout(
        name="llava-1.5-7b-hf (saved again)",
        hub_id=_HUB,
        family="llava",
        write=_saved_again,
        commands=("plain", "divprune"),
    ),
)
