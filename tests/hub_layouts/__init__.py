"""Published checkpoints, file by file as they lie on the hub, with tiny random weights; templates in our own words."""

from __future__ import annotations

from hub_layouts import llava_1_5
from hub_layouts.layout import Layout

LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (*llava_1_5.LAYOUTS,)}
