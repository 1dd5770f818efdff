"""CLIP's image processor and tower, as LLaVA's checkpoints of several lines have them: at 56 pixels instead of 336."""

from __future__ import annotations

from typing import Any

SIDE, PATCH = 56, 14
MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]


def tower(layers: int) -> dict[str, Any]:
    """Return ``vision_config``."""
    return {
        "hidden_size": 32,
        "image_size": SIDE,
        "intermediate_size": 64,
        "model_type": "clip_vision_model",
        "num_attention_heads": 4,
        "num_hidden_layers": layers,
        "patch_size": PATCH,
        "projection_dim": 24,
        "vocab_size": 32000,
    }


def processor(**more: Any) -> dict[str, Any]:
    """Return ``preprocessor_config.json``."""
    return {
        "crop_size": {"height": SIDE, "width": SIDE},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": MEAN,
        "image_processor_type": "CLIPImageProcessor",
        "image_std": STD,
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": SIDE},
        **more,
    }
