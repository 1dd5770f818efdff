"""Short names of published checkpoints, each with the sizes of its architecture for use without the checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Alias:
    """A short name: where its checkpoint is, and its configuration for use without the checkpoint.

    ``config`` are the arguments of the family's transformers configuration. ``size`` are the bytes of its safetensors
    and ``licence`` the name on its page, where they are known.
    """

    hub_id: str | None
    family: str
    note: str
    config: dict[str, Any] | None = None
    size: int | None = None
    licence: str | None = None


_CLIP_L_336 = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}


_SIGLIP_SO400M_384 = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "vision_use_head": False,
}
_QWEN2_05B = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    "vocab_size": 152000,
    "tie_word_embeddings": True,
}


def _vicuna(width: int, mlp: int, layers: int, heads: int) -> dict[str, Any]:
    """Return CLIP before Vicuna, which LLaVA gives tokens for the picture and padding."""
    text = {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "vocab_size": 32064,
    }
    return {"vision_config": _CLIP_L_336, "text_config": text, "image_token_index": 32000}


_VICUNA_7B, _VICUNA_13B = _vicuna(4096, 11008, 32, 32), _vicuna(5120, 13824, 40, 40)


def _qwen2_5(width: int, mlp: int, layers: int, heads: int, kv_heads: int, vocabulary: int) -> dict[str, Any]:
    return {
        "vision_config": {
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "out_hidden_size": width,
            "tokens_per_second": 2,
        },
        "text_config": {
            "hidden_size": width,
            "intermediate_size": mlp,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "max_position_embeddings": 128000,
            "vocab_size": vocabulary,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
    }


def _smolvlm(width: int, mlp: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return {
        "vision_config": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 512,
            "patch_size": 16,
        },
        "text_config": {
            "model_type": "llama",
            "hidden_size": width,
            "intermediate_size": mlp,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": 64,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
            "vocab_size": 49280,
        },
        "scale_factor": 4,
        "image_token_id": 49190,
    }


ALIASES: dict[str, Alias] = {
    "tiny-llava": Alias(hub_id=None, family="llava", note="trained on handwritten digits, comes with lmmprune"),
    "llava-1.5-7b": Alias(
        hub_id="llava-hf/llava-1.5-7b-hf",
        size=14_130_000_000,
        licence="llama2",
        family="llava",
        note="LLaVA-1.5 with Vicuna 7B",
        config=_VICUNA_7B,
    ),
    "llava-1.5-13b": Alias(
        hub_id="llava-hf/llava-1.5-13b-hf",
        size=26_700_000_000,
        licence="llama2",
        family="llava",
        note="LLaVA-1.5 with Vicuna 13B",
        config=_VICUNA_13B,
    ),
    "llava-v1.6-vicuna-7b": Alias(
        hub_id="llava-hf/llava-v1.6-vicuna-7b-hf",
        size=14_130_000_000,
        licence="llama2",
        family="llava_next",
        note="LLaVA-NeXT with Vicuna 7B",
        config=_VICUNA_7B,
    ),
    "llava-v1.6-vicuna-13b": Alias(
        hub_id="llava-hf/llava-v1.6-vicuna-13b-hf",
        size=26_700_000_000,
        licence="llama2",
        family="llava_next",
        note="LLaVA-NeXT with Vicuna 13B",
        config=_VICUNA_13B,
    ),
    "llava-onevision-qwen2-0.5b": Alias(
        hub_id="llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
        size=1_790_000_000,
        licence="apache-2.0",
        family="llava_onevision",
        note="LLaVA-OneVision with Qwen2 0.5B",
        config={"vision_config": _SIGLIP_SO400M_384, "text_config": _QWEN2_05B},
    ),
    "smolvlm-256m": Alias(
        hub_id="HuggingFaceTB/SmolVLM-256M-Instruct",
        size=513_000_000,
        licence="apache-2.0",
        family="idefics3",
        note="SmolVLM with SmolLM2 135M",
        config=_smolvlm(576, 1536, 30, 9, 3),
    ),
    "smolvlm-500m": Alias(
        hub_id="HuggingFaceTB/SmolVLM-500M-Instruct",
        size=1_015_000_000,
        licence="apache-2.0",
        family="idefics3",
        note="SmolVLM with SmolLM2 360M",
        config=_smolvlm(960, 2560, 32, 15, 5),
    ),
    "smolvlm2-256m": Alias(
        hub_id="HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
        licence="apache-2.0",
        family="smolvlm",
        note="SmolVLM2 with SmolLM2 135M, single pictures",
        config=_smolvlm(576, 1536, 30, 9, 3),
    ),
    "smolvlm2-500m": Alias(
        hub_id="HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        licence="apache-2.0",
        family="smolvlm",
        note="SmolVLM2 with SmolLM2 360M, single pictures",
        config=_smolvlm(960, 2560, 32, 15, 5),
    ),
    "internvl3-1b": Alias(
        hub_id="OpenGVLab/InternVL3-1B-hf",
        family="internvl",
        note="InternVL3 with Qwen2.5 0.5B, pictures as one tile",
        config={
            # The rest of InternViT-300M is transformers' default. So are the ties, though the file holds a head of its
            # own, which is what a checkpoint's export takes.
            "vision_config": {"attention_bias": True},
            "text_config": {
                "model_type": "qwen2",
                "hidden_size": 896,
                "intermediate_size": 4864,
                "num_hidden_layers": 24,
                "num_attention_heads": 14,
                "num_key_value_heads": 2,
                "max_position_embeddings": 32768,
                # From there on; below, the frequencies are those of the default.
                "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1000000.0},
                "vocab_size": 151674,
            },
        },
    ),
    "internvl3.5-1b": Alias(
        hub_id="OpenGVLab/InternVL3_5-1B-HF",
        licence="apache-2.0",
        family="internvl",
        note="InternVL3.5 with Qwen3 0.6B, pictures as one tile",
        config={
            "vision_config": {"attention_bias": True},
            "text_config": {
                "model_type": "qwen3",
                "hidden_size": 1024,
                "intermediate_size": 3072,
                "num_hidden_layers": 28,
                "num_attention_heads": 16,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "max_position_embeddings": 40960,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
                "vocab_size": 151936,
            },
            "image_token_id": 151671,
            # Not confirmed: ties are transformers' default here.
        },
    ),
    "qwen2-vl-2b": Alias(
        hub_id="Qwen/Qwen2-VL-2B-Instruct",
        family="qwen2_vl",
        note="Qwen2-VL, 2B; pictures of 448 x 448 unless --image-size says otherwise",
        config={
            "vision_config": {"hidden_size": 1536},
            "text_config": {
                "hidden_size": 1536,
                "intermediate_size": 8960,
                "num_hidden_layers": 28,
                "num_attention_heads": 12,
                "num_key_value_heads": 2,
                "max_position_embeddings": 32768,
                "vocab_size": 151936,
                "rms_norm_eps": 1e-6,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
            },
            "tie_word_embeddings": True,
        },
    ),
    "qwen2.5-vl-3b": Alias(
        hub_id="Qwen/Qwen2.5-VL-3B-Instruct",
        size=7_510_000_000,
        licence="qwen-research",
        family="qwen2_5_vl",
        note="Qwen2.5-VL, 3B; pictures of 448 x 448 unless --image-size says otherwise",
        config={**_qwen2_5(2048, 11008, 36, 16, 2, 151936), "tie_word_embeddings": True},
    ),
    "qwen2.5-vl-7b": Alias(
        hub_id="Qwen/Qwen2.5-VL-7B-Instruct",
        size=16_580_000_000,
        licence="apache-2.0",
        family="qwen2_5_vl",
        note="Qwen2.5-VL, 7B; pictures of 448 x 448 unless --image-size says otherwise",
        config=_qwen2_5(3584, 18944, 28, 28, 4, 152064),
    ),
    "qwen3-vl-2b": Alias(
        hub_id="Qwen/Qwen3-VL-2B-Instruct",
        size=4_255_000_000,
        licence="apache-2.0",
        family="qwen3_vl",
        note="Qwen3-VL, 2B; pictures of 512 x 512 unless --image-size says otherwise",
        config={
            "vision_config": {
                "depth": 24,
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "out_hidden_size": 2048,
                "deepstack_visual_indexes": [5, 11, 17],
            },
            "text_config": {
                "hidden_size": 2048,
                "intermediate_size": 6144,
                "num_hidden_layers": 28,
                "num_attention_heads": 16,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "max_position_embeddings": 262144,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 5e6,
                    "mrope_section": [24, 20, 20],
                    "mrope_interleaved": True,
                },
            },
            "tie_word_embeddings": True,
        },
    ),
}
