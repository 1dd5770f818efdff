"""Published checkpoints, file by file as they lie on the hub, with tiny random weights; templates in our own words."""

from __future__ import annotations

from hub_layouts import bakllava, idefics3, internvl, kinds, llava_1_5, llava_1_6, llava_qwen, qwen_vl, smolvlm
from hub_layouts.layout import Layout

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        *llava_1_5.LAYOUTS,
        *llava_1_6.LAYOUTS,
        *llava_qwen.LAYOUTS,
        *bakllava.LAYOUTS,
        *internvl.LAYOUTS,
        *smolvlm.LAYOUTS,
        *idefics3.LAYOUTS,
        *qwen_vl.LAYOUTS,
        *kinds.LAYOUTS,
    )
}
