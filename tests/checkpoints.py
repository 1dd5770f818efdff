"""tiny-llava's files in a folder of their own, with this or that changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lmmprune.models.registry import tiny_llava_dir

Tensors = dict[str, torch.Tensor]
EMBEDDING = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"


def copy_tiny(
    folder: Path,
    *,
    config: Mapping[str, Any] | None = None,
    text: Mapping[str, Any] | None = None,
    tensors: Callable[[Tensors], Tensors] | None = None,
) -> Path:
    """Copy the checkpoint.

    Args:
        folder: Where to; made.
        config: Settings that config.json gets; None as a value takes one out.
        text: The same for its text_config.
        tensors: Changes the weights.
    """
    shutil.copytree(tiny_llava_dir(), folder, ignore=shutil.ignore_patterns("*.py", "calib", "examples", "__pycache__"))
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for place, changes in ((raw, config), (raw["text_config"], text)):
        place.update(changes or {})
        for name in [name for name, value in (changes or {}).items() if value is None]:
            place.pop(name)
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    if tensors is not None:
        changed = tensors(load_file(folder / "model.safetensors"))
        save_file({name: value.contiguous() for name, value in changed.items()}, folder / "model.safetensors")
    return folder
