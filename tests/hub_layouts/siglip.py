"""SigLIP's tower and image processor, without the head that pools: at 60 pixels instead of 384.

60 pixels, as 384, aren't a whole number of patches of 14: the rest of each edge is never seen.
"""

from __future__ import annotations

from typing import Any

SIDE, PATCH = 60, 14


def tower(layers: int) -> dict[str, Any]:
    """Return ``vision_config``."""
    return {
        "hidden_size": 32,
        "image_size": SIDE,
        "intermediate_size": 48,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 4,
        "num_hidden_layers": layers,
        "patch_size": PATCH,
        "vision_use_head": False,
    }


def processor(**more: Any) -> dict[str, Any]:
    """Return ``preprocessor_config.json``."""
    return {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "SiglipImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": SIDE, "width": SIDE},
        **more,
    }
