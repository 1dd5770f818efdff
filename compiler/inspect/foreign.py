"""What another exporter's vision tower offers to a method, once ``rewrite`` has brought it into canonical form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmmprune.errors import LmmpruneError


def is_picture_graph(model: Any) -> bool:
    """Return whether a graph reads one picture and nothing else."""
    from lmmprune.passes.foreign.find_features import find_picture

    try:
        find_picture(model)
    except LmmpruneError:
        return False
    return True


def foreign_anchors(
    path: Path, image_size: tuple[int, int] | None
) -> tuple[dict[str, Any] | None, list[dict[str, Any]] | None, str | None]:
    """Return the sites and attention layers of a tower; no weight is read.

    Args:
        path: The file.
        image_size: Height and width in pixels, where the graph leaves them open.

    Returns:
        What the tower offers and its layers; or, in the last place, why it offers nothing.
    """
    from lmmprune.compiler.rewrite.canonicalize_foreign import canonicalize_foreign
    from lmmprune.passes.foreign.find_features import find_features, find_grid
    from lmmprune.passes.graph.shapes import static_shape

    try:
        model = canonicalize_foreign(path, image_size=image_size).model
        found = find_features(model, grid=find_grid(model))
    except LmmpruneError as error:
        return None, None, " ".join(str(error).split())
    inside = f"vision_layer_0..{found.depth - 1}" if found.depth > 1 else "vision_layer_0"
    offer = {
        "tokens": found.grid[0] * found.grid[1],
        "patches_per_token": 1,
        "patches": str(found.output.name),
        "has_cls": found.has_cls,
        "layers": found.depth,
        "sites": [inside, "vision_output", "projector_output"],
        "command": "rewrite",
    }
    layers = [{"node": layer.node.name, "queries": list(static_shape(layer.q))} for layer in found.layers]
    return offer, layers, None
