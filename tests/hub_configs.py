"""What config.json says of each alias's checkpoint on the hub, in the words of its time: what shapes a graph."""

from __future__ import annotations

from typing import Any

_CLIP = {
    "hidden_size": 1024,
    "image_size": 336,
    "intermediate_size": 4096,
    "model_type": "clip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "projection_dim": 768,
    "vocab_size": 32000,
}
_VICUNA_7B = {"max_position_embeddings": 4096, "model_type": "llama", "rms_norm_eps": 1e-05, "vocab_size": 32064}
_VICUNA_13B = _VICUNA_7B | {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "num_key_value_heads": 40,
}
_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def _llava(text: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "image_token_index": 32000,
        "model_type": "llava",
        "projector_hidden_act": "gelu",
        "text_config": text,
        "vision_config": _CLIP,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        **more,
    }


def _next(text: dict[str, Any]) -> dict[str, Any]:
    return _llava(text, model_type="llava_next", image_grid_pinpoints=_PINPOINTS)


def _smolvlm(model: str, width: int, mlp: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return {
        "image_token_id": 49190,
        "model_type": model,
        "scale_factor": 4,
        "text_config": {
            "head_dim": 64,
            "hidden_size": width,
            "intermediate_size": mlp,
            "max_position_embeddings": 8192,
            "model_type": "llama",
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "num_key_value_heads": kv_heads,
            "rms_norm_eps": 1e-05,
            "rope_theta": 100000,
            "vocab_size": 49280,
        },
        "tie_word_embeddings": False,
        "vision_config": {
            "hidden_size": 768,
            "image_size": 512,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "patch_size": 16,
        },
    }


def _internvl(text: dict[str, Any], image: int) -> dict[str, Any]:
    return {
        "downsample_ratio": 0.5,
        "image_token_id": image,
        "model_type": "internvl",
        "projector_hidden_act": "gelu",
        "text_config": {"hidden_act": "silu", "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, **text},
        "vision_config": {
            "attention_bias": True,
            "hidden_size": 1024,
            "image_size": [448, 448],
            "intermediate_size": 4096,
            "layer_norm_eps": 1e-06,
            "model_type": "internvl_vision",
            "norm_type": "layer_norm",
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "patch_size": [14, 14],
            "use_qk_norm": False,
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    }


def _flat(model: str, sizes: tuple[int, int, int, int, int], vocabulary: int, **more: Any) -> dict[str, Any]:
    """Return the configuration of a Qwen-VL before its parts lay side by side."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    return {
        "hidden_act": "silu",
        "image_token_id": 151655,
        "model_type": model,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "use_sliding_window": False,
        "vocab_size": vocabulary,
        **dict(zip(names, sizes, strict=True)),
        **more,
    }


def _windows(width: int) -> dict[str, Any]:
    return {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": width,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    }


_QWEN3_VL_TEXT = {
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 262144,
    "model_type": "qwen3_vl_text",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
    "rope_theta": 5000000,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
}
_QWEN3_VL_TOWER = {
    "deepstack_visual_indexes": [5, 11, 17],
    "depth": 24,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_heads": 16,
    "num_position_embeddings": 2304,
    "out_hidden_size": 2048,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "llava-1.5-7b": _llava(_VICUNA_7B),
    "llava-1.5-13b": _llava(_VICUNA_13B),
    "llava-v1.6-vicuna-7b": _next(_VICUNA_7B),
    "llava-v1.6-vicuna-13b": _next(_VICUNA_13B),
    "llava-onevision-qwen2-0.5b": {
        "image_grid_pinpoints": [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)],
        "image_token_index": 151646,
        "model_type": "llava_onevision",
        "projector_hidden_act": "gelu",
        "text_config": {
            "hidden_size": 896,
            "intermediate_size": 4864,
            "max_position_embeddings": 32768,
            "model_type": "qwen2",
            "num_attention_heads": 14,
            "num_hidden_layers": 24,
            "num_key_value_heads": 2,
            "rope_theta": 1000000.0,
            "tie_word_embeddings": True,
            "vocab_size": 152000,
        },
        "video_token_index": 151647,
        "vision_aspect_ratio": "anyres_max_9",
        "vision_config": {
            "hidden_size": 1152,
            "image_size": 384,
            "intermediate_size": 4304,
            "model_type": "siglip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 26,
            "patch_size": 14,
            "vision_use_head": False,
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    },
    "smolvlm-256m": _smolvlm("idefics3", 576, 1536, 30, 9, 3),
    "smolvlm-500m": _smolvlm("idefics3", 960, 2560, 32, 15, 5),
    "smolvlm2-256m": _smolvlm("smolvlm", 576, 1536, 30, 9, 3),
    "smolvlm2-500m": _smolvlm("smolvlm", 960, 2560, 32, 15, 5),
    "internvl3-1b": _internvl(
        {
            "hidden_size": 896,
            "intermediate_size": 4864,
            "max_position_embeddings": 32768,
            "model_type": "qwen2",
            "num_attention_heads": 14,
            "num_hidden_layers": 24,
            "num_key_value_heads": 2,
            "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
            "sliding_window": None,
            "use_sliding_window": False,
            "vocab_size": 151674,
        },
        151667,
    ),
    "internvl3.5-1b": _internvl(
        {
            "attention_bias": False,
            "head_dim": 128,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "max_position_embeddings": 40960,
            "model_type": "qwen3",
            "num_attention_heads": 16,
            "num_hidden_layers": 28,
            "num_key_value_heads": 8,
            "rope_scaling": None,
            "vocab_size": 151936,
        },
        151671,
    ),
    "qwen2-vl-2b": _flat(
        "qwen2_vl",
        (1536, 8960, 28, 12, 2),
        151936,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
        vision_config={
            "depth": 32,
            "embed_dim": 1280,
            "mlp_ratio": 4,
            "num_heads": 16,
            "hidden_size": 1536,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    ),
    "qwen2.5-vl-3b": _flat(
        "qwen2_5_vl",
        (2048, 11008, 36, 16, 2),
        151936,
        max_position_embeddings=128000,
        tie_word_embeddings=True,
        vision_config=_windows(2048),
    ),
    "qwen2.5-vl-7b": _flat(
        "qwen2_5_vl",
        (3584, 18944, 28, 28, 4),
        152064,
        max_position_embeddings=128000,
        tie_word_embeddings=False,
        vision_config=_windows(3584),
    ),
    "qwen3-vl-2b": {
        "image_token_id": 151655,
        "model_type": "qwen3_vl",
        "text_config": _QWEN3_VL_TEXT,
        "tie_word_embeddings": True,
        "vision_config": _QWEN3_VL_TOWER,
    },
}
