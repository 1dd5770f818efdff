"""Towers without CLS: a tiny LLaVA with SigLIP against transformers, its processor, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from lmmprune.compiler.assets.image_processor import preprocessing
from lmmprune.compiler.assets.write_assets import write_assets
from lmmprune.compiler.bundle.bundle import PREPROCESSOR
from lmmprune.compiler.runtime.preprocess import Preprocessor
from lmmprune.errors import ModelError
from lmmprune.models import trace
from lmmprune.models.canonical import canonical_graphs
from lmmprune.models.canonicalize import canonicalize
from lmmprune.models.registry import tiny_llava_dir
from lmmprune.models.source import resolve
from lmmprune.passes.find.anchors import find_vision_anchors

SIDE, LAYERS, WIDTH = 4, 3, 32
SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "image_size": 7 * SIDE,
    "patch_size": 7,
}


def config(vision: Any, **changes: Any) -> LlavaConfig:
    text = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=64
    )
    options = {"vision_feature_layer": -2, "vision_feature_select_strategy": "full"} | changes
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=4, **options)


def save(path: Path, *, head: bool, layer: int) -> Any:
    """Save a random LLaVA with a SigLIP tower as transformers does, and return it."""
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        config(SiglipVisionConfig(vision_use_head=head, **SIZES), vision_feature_layer=layer)
    ).eval()
    with torch.no_grad():
        # transformers starts with weights so small that any two outputs would agree to 1e-5.
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    model.save_pretrained(path)
    for name in ("tokenizer.json", "generation_config.json"):
        shutil.copyfile(tiny_llava_dir() / name, path / name)
    SiglipImageProcessorPil(size={"height": 7 * SIDE, "width": 7 * SIDE}).save_pretrained(path)
    return model


def check(graph: ir.Model, layers: int, model: Any, tmp_path: Path) -> None:
    """The graph has so many layers and nothing behind them, no CLS, and transformers' features."""
    assert Counter(node.op_type for node in graph.graph)["Attention"] == layers
    seen = {int(found[1]) for name in graph.graph.initializers if (found := re.search(r"layers\.(\d+)\.", name))}
    assert seen == set(range(layers)), "a layer behind the features was left"
    assert not [name for name in graph.graph.initializers if "post_layernorm" in name or ".head." in name]
    anchors = find_vision_anchors(graph)
    assert (anchors.has_cls, anchors.tokens, len(anchors.layers)) == (False, SIDE**2, layers)

    ir.save(graph, tmp_path / "vision.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "vision.onnx", providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(0).standard_normal((1, 3, 7 * SIDE, 7 * SIDE), dtype=np.float32)
    (found,) = session.run(None, {"pixel_values": pixels})
    with torch.no_grad():
        (expected,) = model.get_image_features(torch.from_numpy(pixels), return_dict=True).pooler_output
    assert expected.abs().mean() > 0.1
    np.testing.assert_allclose(found[0], expected.numpy(), rtol=1e-5, atol=1e-5)


def test_the_canonical_graph_is_transformers_tower(tmp_path: Path) -> None:
    """With the pooling head of plain SigLIP, which the features don't need, and a last layer that they don't either."""
    model = save(tmp_path, head=True, layer=-2)
    source = resolve(str(tmp_path))
    assert (source.vision.has_cls, source.vision.tokens, source.vision.grid) == (False, SIDE**2, (SIDE, SIDE))
    assert source.vision.layers == LAYERS - 1
    graphs = canonical_graphs(source, image_token_id=4)
    check(graphs.vision, LAYERS - 1, model, tmp_path)


def test_the_last_layers_features_come_before_the_last_norm(tmp_path: Path) -> None:
    model = save(tmp_path, head=False, layer=-1)
    source = resolve(str(tmp_path))
    assert not source.vision.has_next_layer
    fake = trace.fake_model(source)
    graph = trace.trace_vision(fake, source)
    trace.bind(graph, source.readers(fake))
    check(canonicalize(graph), LAYERS, model, tmp_path)


def test_the_preprocessor_is_siglips_bit_for_bit(tmp_path: Path) -> None:
    save(tmp_path, head=False, layer=-2)
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    assert write_assets(resolve(str(tmp_path)), bundle).prompt.image_token == "<image>"
    ours = Preprocessor.load(bundle / PREPROCESSOR)
    reference = SiglipImageProcessorPil.from_pretrained(tmp_path)
    for width, height in ((28, 28), (333, 100), (17, 5), (64, 640)):
        noise = np.random.default_rng([width, height]).integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(noise)
        np.testing.assert_array_equal(ours(image), reference(image, return_tensors="np")["pixel_values"])


@pytest.mark.parametrize(
    ("vision", "changes", "message"),
    [
        (CLIPVisionConfig(**SIZES), {}, "'full' would hand CLS over as a token; only 'default'"),
        (
            SiglipVisionConfig(**SIZES),
            {"vision_feature_select_strategy": "default"},
            "row 0 is a patch, which 'default' would drop; only 'full'",
        ),
        (SiglipVisionConfig(**SIZES), {"vision_feature_layer": [-2, -1]}, "one layer is supported"),
        (SiglipVisionConfig(**{**SIZES, "image_size": [28, 14]}), {}, "expected one number each"),
        ({"model_type": "pixtral"}, {}, "the vision tower is a 'pixtral'; LLaVA is supported with clip_vision_model"),
    ],
)
def test_what_would_hand_over_other_tokens_is_refused(
    vision: Any, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config(vision, **changes).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=re.escape(message)) as caught:
        _ = resolve(str(tmp_path), weights="dummy").vision
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_split": True}, "SiglipImageProcessor has 'do_split' on"),
        ({"size": None}, "states no 'size'"),
        ({"image_std": None}, "states no 'image_std'"),
        ({"size": {"longest_edge": 28}}, "resizes to ['longest_edge']"),
        ({"size": {"shortest_edge": 28}}, "makes pictures of no fixed size, the vision tower takes [28, 28]"),
        ({"do_resize": False}, "makes pictures of no fixed size"),
        ({"size": {"height": 28, "width": 14}}, "makes [28, 14] pixels"),
    ],
)
def test_other_processors_are_refused(changes: dict[str, Any], message: str) -> None:
    raw = json.loads(SiglipImageProcessorPil(size={"height": 28, "width": 28}).to_json_string())
    assert preprocessing(raw, (28, 28))["crop"] is None
    with pytest.raises(ModelError, match=re.escape(message)):
        preprocessing(raw | changes, (28, 28))
