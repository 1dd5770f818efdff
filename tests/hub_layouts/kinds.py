"""Kinds of folders that hold something else than a whole checkpoint in one piece, or hold it in another way."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from hub_layouts import clip, llava_1_5, qwen_text
from hub_layouts.checkpoint_files import write_json
from hub_layouts.layout import Layout

_BASE = "llava-hf/llava-1.5-7b-hf"
_REVISION = "b234b804b114d9e37bb655e11cbbb5f5e971b7a9"


def _original_llava(folder: Path, layers: int) -> None:
    """Write liuhaotian/llava-v1.5-7b: the language model and projector alone, its tower is another checkpoint."""
    size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": layers}
    write_json(
        folder,
        config={
            "_name_or_path": "llava-v1.5-7b",
            "architectures": ["LlavaLlamaForCausalLM"],
            "bos_token_id": 1,
            "eos_token_id": 2,
            "freeze_mm_mlp_adapter": False,
            "freeze_mm_vision_resampler": False,
            "hidden_act": "silu",
            **size,
            "image_aspect_ratio": "pad",
            "initializer_range": 0.02,
            "max_length": 4096,
            "max_position_embeddings": 4096,
            "mm_hidden_size": 32,
            "mm_projector_type": "mlp2x_gelu",
            "mm_resampler_type": None,
            "mm_use_im_patch_token": False,
            "mm_use_im_start_end": False,
            "mm_vision_select_feature": "patch",
            "mm_vision_select_layer": -2,
            "mm_vision_tower": "openai/clip-vit-large-patch14-336",
            "model_type": "llava",
            "num_key_value_heads": 4,
            "pad_token_id": 0,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "transformers_version": "4.31.0",
            "tune_mm_mlp_adapter": False,
            "tune_mm_vision_resampler": False,
            "unfreeze_mm_vision_tower": False,
            "use_cache": True,
            "use_mm_proj": True,
            "vocab_size": 32000,
        },
        generation_config={"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "transformers_version": "4.31.0"},
        tokenizer_config={"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "LlamaTokenizer"},
    )
    tensors = {"model.mm_projector.0.weight": torch.zeros(32, 32), "lm_head.weight": torch.zeros(32000, 32)}
    names = [f"pytorch_model-{part}-of-00002.bin" for part in ("00001", "00002")]
    for name, (key, tensor) in zip(names, tensors.items(), strict=True):
        torch.save({key: tensor.half()}, folder / name)
    weight_map = dict(zip(tensors, names, strict=True))
    (folder / "pytorch_model.bin.index.json").write_text(f'{{"weight_map": {weight_map!r}}}'.replace("'", '"'))


def _original_safetensors(folder: Path, layers: int) -> None:
    """Write the same with safetensors, as later fine-tunes with LLaVA's own code have it."""
    _original_llava(folder, layers)
    for file in folder.glob("pytorch_model*"):
        file.unlink()
    save_file({"model.mm_projector.0.weight": torch.zeros(32, 32).half()}, folder / "model.safetensors")


def _adapter(folder: Path, layers: int) -> None:
    """Write what PEFT saves: the low-rank factors and whose weights they belong to."""
    name = "base_model.model.language_model.model.layers.0.self_attn.q_proj"
    factors = {f"{name}.lora_A.weight": torch.zeros(4, 32), f"{name}.lora_B.weight": torch.zeros(32, 4)}
    save_file(factors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    write_json(
        folder,
        adapter_config={
            "alpha_pattern": {},
            "auto_mapping": None,
            "base_model_name_or_path": _BASE,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
            "lora_alpha": 8,
            "lora_dropout": 0.05,
            "modules_to_save": None,
            "peft_type": "LORA",
            "r": 4,
            "rank_pattern": {},
            "target_modules": ["q_proj"],
            "task_type": "CAUSAL_LM",
            "use_dora": False,
            "use_rslora": False,
        },
    )
    (folder / "README.md").write_text(f"---\nbase_model: {_BASE}\nlibrary_name: peft\n---\n", encoding="utf-8")


def _pickled(folder: Path, layers: int) -> None:
    """Write weights as pickles alone."""
    llava_1_5.write_today(folder, layers)
    shards = sorted(folder.glob("model-*.safetensors"))
    tensors = {name: tensor for file in shards for name, tensor in load_file(file).items()}
    for file in (*shards, folder / "model.safetensors.index.json"):
        file.unlink()
    torch.save(tensors, folder / "pytorch_model.bin")


def _cache(folder: Path, layers: int) -> None:
    """Write the hub's cache: blobs by the digest of their content, and a snapshot of links to them."""
    repository = folder / f"models--{_BASE.replace('/', '--')}"
    snapshot = repository / "snapshots" / _REVISION
    for part in (snapshot, repository / "blobs", repository / "refs"):
        part.mkdir(parents=True)
    (repository / "refs" / "main").write_text(_REVISION)
    llava_1_5.write_today(snapshot, layers)
    for file in sorted(snapshot.iterdir()):
        blob = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        file.replace(blob)
        file.symlink_to(os.path.relpath(blob, snapshot))


def _doubled(folder: Path, layers: int) -> None:
    """Write the weights three times: shards with their index, all in one file, and consolidated under other names.

    transformers takes the single file; the shards hold other values, and the consolidated file nothing it knows.
    """
    llava_1_5.write_today(folder, layers)
    shards = sorted(folder.glob("model-*.safetensors"))
    whole = {name: tensor for file in shards for name, tensor in load_file(file).items()}
    for file in shards:
        stale = {name: torch.zeros_like(tensor) for name, tensor in load_file(file).items()}
        save_file(stale, folder / file.name, metadata={"format": "pt"})
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
    save_file({"tok_embeddings.weight": torch.zeros(8, 8)}, folder / "consolidated.safetensors")


def _text_only(folder: Path, layers: int) -> None:
    """Write a language model without a tower."""
    end, stop = qwen_text.cut(151643), qwen_text.cut(151645)
    write_json(
        folder,
        config={
            "architectures": ["Qwen2ForCausalLM"],
            "bos_token_id": end,
            "eos_token_id": stop,
            "max_position_embeddings": 32768,
            "model_type": "qwen2",
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.43.1",
            "use_sliding_window": False,
            "vocab_size": qwen_text.cut(151936),
            **qwen_text.decoder(layers),
        },
        generation_config={"bos_token_id": end, "eos_token_id": [stop, end]},
    )
    qwen_text.write_tokenizer(folder, [])
    save_file({"model.norm.weight": torch.ones(32).bfloat16()}, folder / "model.safetensors", metadata={"format": "pt"})


def _only_a_tower(folder: Path, layers: int) -> None:
    """Write openai/clip-vit-large-patch14-336, which isn't a model that answers."""
    write_json(
        folder,
        config={
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "projection_dim": 24,
            "text_config": {"hidden_size": 32, "model_type": "clip_text_model"},
            "vision_config": clip.tower(2),
        },
        preprocessor_config=clip.processor(),
    )
    save_file({"logit_scale": torch.zeros(1)}, folder / "model.safetensors")


_SERVED: dict[str, Any] = {"family": "llava"}
LAYOUTS = (
    Layout(name="the hub's cache", write=_cache, hub_model=_BASE, **_SERVED),
    Layout(name="doubled weights", write=_doubled, **_SERVED),
    Layout(name="LLaVA (original)", hub_id="liuhaotian/llava-v1.5-7b", write=_original_llava, line=("-hf",)),
    Layout(name="LLaVA (original, safetensors)", write=_original_safetensors, line=("-hf",)),
    Layout(name="a LoRA of PEFT", write=_adapter, line=("LoRA|adapter", "--adapter")),
    Layout(name="pickles alone", write=_pickled, line=("pickle", "safe_serialization|save_pretrained")),
    Layout(name="text alone", hub_id="Qwen/Qwen2.5-0.5B-Instruct", write=_text_only, line=("qwen2",)),
    Layout(name="a tower alone", hub_id="openai/clip-vit-large-patch14-336", write=_only_a_tower, line=("clip",)),
)
