"""LLaVA-NeXT (LLaVA-1.6): LLaVA-1.5's parts, with pictures cut into tiles.

Reference: Liu et al., LLaVA-NeXT: Improved reasoning, OCR, and world knowledge, 2024 (blog post).
"""

from __future__ import annotations

from lmmprune.models.families import anyres, llava
from lmmprune.models.family import Family

FAMILY = Family(
    name="llava_next",
    title="LLaVA-NeXT",
    template="USER: <image>\n{prompt} ASSISTANT:",
    image_token="<image>",
    vision=anyres.vision_spec,
    decoder=llava.decoder_spec,
    shrink=llava.shrink,
    vision_features=anyres.features,
    early_template=True,
    reference="blog post",
    one_picture=anyres.ONE_PICTURE,
    tried=("llava-hf/llava-v1.6-vicuna-7b-hf", "llava-hf/llava-v1.6-mistral-7b-hf"),
    limits=anyres.LIMITS,
    arrange=anyres.arrange,
    grids=anyres.grids_of,
)
