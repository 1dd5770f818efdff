"""Checkpoints of tiny random models whose pictures are cut into tiles, and bundles of them, made once per session."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from exports import exported_again
from random_llava import PATCH, fill

from lmmprune.compiler.export.request import Report
from lmmprune.models.registry import tiny_llava_dir

GRID = 4  # patches a side of a tile
SIDE = GRID * PATCH
IMAGE_TOKEN = 4  # tiny-llava's tokenizer
PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE], [SIDE, 3 * SIDE]]

_ROOT = tempfile.TemporaryDirectory(prefix="lmmprune-tiles-")


def _tower(layers: int) -> dict[str, Any]:
    sizes = {"hidden_size": 12, "intermediate_size": 24, "num_attention_heads": 3}
    return {**sizes, "num_hidden_layers": layers, "image_size": SIDE, "patch_size": PATCH}


def _text() -> dict[str, Any]:
    sizes = {"hidden_size": 24, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": 63}
    return {**sizes, **ids, "num_hidden_layers": 3, "max_position_embeddings": 512}


def _llava_next() -> tuple[Any, Any]:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**_tower(4), projection_dim=12),
        text_config=LlamaConfig(**_text()),
        image_token_index=IMAGE_TOKEN,
        image_grid_pinpoints=PINPOINTS,
    )
    crop = {"height": SIDE, "width": SIDE}
    processor = LlavaNextImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=crop, image_grid_pinpoints=PINPOINTS)
    return LlavaNextForConditionalGeneration(config), processor


def _llava_onevision() -> tuple[Any, Any]:
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        Qwen2Config,
        SiglipVisionConfig,
    )
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**_tower(3), vision_use_head=False),
        text_config=Qwen2Config(**_text(), tie_word_embeddings=True),
        image_token_index=IMAGE_TOKEN,
        image_grid_pinpoints=[*PINPOINTS, [SIDE, SIDE], [4 * SIDE, 4 * SIDE]],
    )
    processor = LlavaOnevisionImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        image_grid_pinpoints=config.image_grid_pinpoints,
    )
    return LlavaOnevisionForConditionalGeneration(config), processor


_FAMILIES = {"llava_next": _llava_next, "llava_onevision": _llava_onevision}


@functools.cache
def checkpoint(family: str) -> Path:
    """Return the directory of a family's random checkpoint."""
    folder = Path(_ROOT.name) / family
    model, processor = _FAMILIES[family]()
    fill(model, torch.Generator().manual_seed(7))
    with torch.no_grad():
        model.model.image_newline.normal_(generator=torch.Generator().manual_seed(8))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    for name in ("tokenizer.json", "generation_config.json"):
        shutil.copyfile(tiny_llava_dir() / name, folder / name)
    return folder


@functools.cache
def hugging_face(family: str, tiles: tuple[int, int]) -> tuple[Any, Any]:
    """Return transformers' own model and image processor, whose only grid is the given one."""
    from transformers import AutoModelForImageTextToText

    grid = [[tiles[0] * SIDE, tiles[1] * SIDE]]
    model = AutoModelForImageTextToText.from_pretrained(checkpoint(family), dtype=torch.float32).eval()
    model.config.image_grid_pinpoints = grid
    _, processor = _FAMILIES[family]()
    processor.image_grid_pinpoints = grid
    return model, processor


def exported(family: str, **options: Any) -> tuple[Path, Report]:
    """Return a bundle of the random model exported with these options; don't change it."""
    return exported_again(model=str(checkpoint(family)), **options)


@functools.cache
def whole_processor(family: str) -> tuple[Any, Any]:
    """Return transformers' own model and image processor, with all grids that the checkpoint lists."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(checkpoint(family), dtype=torch.float32).eval()
    _, processor = _FAMILIES[family]()
    return model, processor
