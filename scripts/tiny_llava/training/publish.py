"""Write the published directory: weights, tokenizer, calibration scenes and examples."""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from transformers import LlavaForConditionalGeneration

from lmmprune.models.tiny_llava.dataset import Example, calibration, heldout
from training.architecture import save_directory

_DEMO_SCENES = (3, 21, 40, 77)
"""Held-out scenes shown in the demo."""


def _write_examples(directory: Path, index: str, examples: Sequence[Example], *, several: bool = False) -> None:
    """Write PNG files and one JSON line per example (image, prompt, answer)."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = []
    for example in examples:
        name = f"scene_{example.image_id:03d}.png"
        example.image.save(directory / name, optimize=True)
        row = {"image": name, "prompt": example.question, "answer": example.answer}
        lines.append(json.dumps(row | ({"kind": example.kind} if several else {})))
    (directory / index).write_text("\n".join(lines) + "\n", encoding="utf-8")


def publish(model: LlavaForConditionalGeneration, directory: Path) -> None:
    """Put the Hugging Face files in place, each by an atomic rename, then the pictures."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".publish-") as scratch:
        fresh = Path(scratch)
        save_directory(model, fresh)
        for file in sorted(fresh.iterdir()):
            file.chmod(0o644)  # safetensors writes files that only their owner can read
            os.replace(file, directory / file.name)
    _write_examples(directory / "calib", "calib.jsonl", calibration())
    shown = [example for example in heldout() if example.image_id in _DEMO_SCENES]
    _write_examples(directory / "examples", "examples.jsonl", shown, several=True)
