"""Weights and settings as files: random values under the names that a checkpoint's time gave them, in its type."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Renames = Sequence[tuple[str, str]]

OLD_LLAVA: Renames = (
    (r"^model\.vision_tower\.(?:vision_model\.)?", "vision_tower.vision_model."),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.(multi_modal_projector\.|image_newline)", r"\1"),
)
"""The names of transformers 4.36 to 4.51, from those of the loaded module."""

NEW_LLAVA: Renames = ((r"^model\.vision_tower\.(?:vision_model\.)?", "model.vision_tower.vision_model."),)
"""The names of transformers from 4.52 on."""


def write_json(folder: Path, **files: Any) -> None:
    """Write settings, each ``name=content`` as name.json."""
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_weights(
    folder: Path,
    renames: Renames,
    *,
    dtype: torch.dtype,
    silent: Sequence[int],
    shards: int = 1,
    seed: int = 5,
    change: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]] = lambda tensors: tensors,
) -> None:
    """Draw the weights of the model that config.json describes, and write them as safetensors.

    Args:
        folder: The checkpoint, with its config.json.
        renames: Patterns and what takes their place, for names of the loaded module.
        dtype: Type on disk.
        silent: Ids that are never generated: end tokens and placeholders, so that answers have one length.
        shards: Files; one has no index.
        seed: Of the draw: there are some with which INT8 is too coarse for so small a model.
        change: What else differs, on tensors by their names on disk.
    """
    tensors = {
        _renamed(name, renames): tensor.to(dtype) for name, tensor in random_weights(folder, silent, seed=seed).items()
    }
    tensors = dict(change(tensors))
    files = [f"model-{part + 1:05}-of-{shards:05}.safetensors" for part in range(shards)]
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    where = {name: files[place * shards // len(names)] for place, name in enumerate(names)}
    for file in files:
        part = {name: tensors[name] for name in names if where[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def random_weights(folder: Path, silent: Sequence[int] = (), *, seed: int = 5) -> dict[str, torch.Tensor]:
    """Return float32 weights of the model that config.json describes, without those that are tied to another."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    auto: Any = AutoModelForImageTextToText
    with torch.device("meta"):
        model = auto.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    # A tied head is listed under the embedding's name alone.
    shapes = {name: parameter.shape for name, parameter in sorted(model.named_parameters())}
    tensors = {name: _draw(name, shape, generator) for name, shape in shapes.items()}
    head = "lm_head.weight" if "lm_head.weight" in tensors else "model.language_model.embed_tokens.weight"
    if head not in tensors:
        head = next(name for name in tensors if name.endswith("embed_tokens.weight"))
    tensors[head][list(silent)] = 0
    return tensors


def _draw(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Draw a parameter: activations near one, attention that is neither flat nor saturated."""
    noise = torch.randn(shape, generator=generator)
    if name.endswith("bias"):
        return 0.1 * noise
    if len(shape) == 1:
        return noise if "newline" in name or "class_embedding" in name else 1 + 0.2 * noise
    if "embed" in name and "patch" not in name:
        # Small beside what the layers add: a tied head would only repeat the last token.
        return 0.4 * noise
    gains = {"q_proj": 1.2, "k_proj": 1.2, "qkv": 1.2, "o_proj": 2.0, "down_proj": 2.0}
    gain = next((value for part, value in gains.items() if part in name), 1.0)
    return gain * noise / math.sqrt(noise[0].numel())


def _renamed(name: str, renames: Renames) -> str:
    for pattern, put in renames:
        name, count = re.subn(pattern, put, name)
        if count:
            break
    return name
