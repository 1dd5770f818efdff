"""The plain way: load the model with its weights, and hand it to ``torch.onnx.export``.

    python scripts/llava7b/export_peers/plain_torch.py CHECKPOINT OUTPUT

The very modules that lmmprune traces, in float16, so that the graphs say the same.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from lmmprune.models.source import resolve
from lmmprune.models.trace import OPSET, cache_names
from lmmprune.models.wrappers import Decoder, Vision


def main(checkpoint: str, output: Path) -> None:
    """Export both components."""
    source = resolve(checkpoint)
    auto: Any = AutoModelForImageTextToText
    model = auto.from_pretrained(checkpoint, dtype=torch.float16, local_files_only=True).eval()
    height, width = source.vision.image_size
    pixels = torch.zeros(1, 3, height, width, dtype=torch.float16)
    vision = Vision(model, source.family, next_layer=False)
    with torch.no_grad():
        torch.onnx.export(
            vision, (pixels,), str(output / "vision.onnx"), dynamo=True, opset_version=OPSET, external_data=True,
            input_names=["pixel_values"], output_names=["image_features"], verbose=False,
        )  # fmt: skip
    spec = source.decoder
    seq, past, tokens = 23, 7, 17
    shape = (1, spec.kv_heads, past, spec.head_dim)
    cache = [tuple(torch.zeros(shape, dtype=torch.float16) for _ in "kv") for _ in range(spec.layers)]
    ids = torch.zeros(1, seq, dtype=torch.int64)
    features = torch.zeros(1, tokens, spec.width, dtype=torch.float16)
    inputs, outputs = cache_names(spec.layers)
    dynamic: Any = ({1: "seq"}, {1: "image_tokens"}, {1: "seq"}, [({2: "past"}, {2: "past"})] * spec.layers)
    with torch.no_grad():
        torch.onnx.export(
            Decoder(model, spec, int(model.config.image_token_id)), (ids, features, ids, cache),
            str(output / "decoder.onnx"),
            dynamo=True, opset_version=OPSET, external_data=True, dynamic_shapes=dynamic, verbose=False,
            input_names=["input_ids", "image_features", "position_ids", *(n for pair in inputs for n in pair)],
            output_names=["logits", *(n for pair in outputs for n in pair)],
        )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
