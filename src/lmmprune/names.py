"""The names of the graphs' inputs and outputs: bundles promise them, passes look for them, run-times feed them."""

from __future__ import annotations

from collections.abc import Collection

# The vision graph.
PIXEL_VALUES = "pixel_values"
IMAGE_FEATURES = "image_features"  # its output, and an input of the decoder
NEXT_LAYER = "next_layer_features"
"""The output of the layer behind the features, which some rules read; traced on request, always removed."""
PATCHES = "patches"
RANKING = "ranking"
DYNAMIC_COUNT = "dynamic_count"

# The selection between vision graph and decoder.
SELECTED = "selected_features"

# The decoder.
INPUT_IDS = "input_ids"
POSITION_IDS = "position_ids"
CACHE_LENGTH = "cache_length"
LOGITS = "logits"
PADDING = "padding"  # of each row of a batch: how many of its tokens are nobody's

# What a pruned graph says of its sites.
KEPT = "kept_indices"
RECEIVED = "received"


def kept_at(site: object) -> str:
    """Return the output with the places that stayed at a site, where a graph has several sites."""
    return f"{KEPT}.{site}"


def kept_output(site: object, outputs: Collection[str]) -> str | None:
    """Return which of a graph's outputs tells the places that a site keeps; None where it has none."""
    # The only stage of a vision graph has no output of its own name.
    return next((name for name in (kept_at(site), KEPT) if name in outputs), None)


def received_at(site: object) -> str:
    """Return the output with 1 for the tokens of a site that others went into."""
    return f"{RECEIVED}.{site}"


def past(layer: int) -> tuple[str, str]:
    """Return the inputs with a layer's cached keys and values."""
    return f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"


def present(layer: int) -> tuple[str, str]:
    """Return the outputs with a layer's keys and values, those of this call included."""
    return f"present.{layer}.key", f"present.{layer}.value"


# ONNX Runtime's product with a weight of few bits, and its attention with a cache.
MICROSOFT = "com.microsoft"
NBITS = "MatMulNBits"
GROUP_QUERY = "GroupQueryAttention"

# Keys of a node's metadata, which a graph keeps when it is written to a file: who wrote the node.
PASS = "lmmprune.pass"
METHOD = "lmmprune.method"
SITE = "lmmprune.site"
READS_TEXT = "lmmprune.reads_text"
"""Of a node that takes all tokens of the question out of the decoder's sequence."""
REPLACES = "lmmprune.replaces"
"""Name of the node in whose place it is."""
