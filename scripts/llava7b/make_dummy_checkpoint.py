"""Write a checkpoint in the Hugging Face layout with made-up weights: the files of the real one, without its answers.

    python scripts/llava7b/make_dummy_checkpoint.py --model llava-1.5-7b -o /tmp/llava-7b
    python scripts/llava7b/make_dummy_checkpoint.py --model llava-1.5-7b --layers 2 -o /tmp/llava-7b-2

Configuration, processor, generation settings, a tokenizer with as many words as the vocabulary, and float16 weights in
sharded safetensors with an index, under the names that transformers saves. Values have the ranges of trained ones:
matrices of a standard deviation of 0.02, gains around 0.4 of which a few channels are ten times larger, as in Llama.
Every tensor has a seed of its own made from its name, so that the same command writes the same bytes.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from safetensors.numpy import save_file

from lmmprune.models.aliases import ALIASES
from lmmprune.models.configure import parts
from lmmprune.models.registry import tiny_llava_dir
from lmmprune.models.source import Source, resolve

Array = np.ndarray[Any, Any]

GAIN, OUTLIER, EVERY = 0.4, 4.0, 509
"""Gains of norms, those of the outlier channels, and how many channels lie between two of these."""
SPREAD = 0.02
"""Standard deviation of matrices; activations keep their size through any depth because norms set it anew."""


def values(name: str, shape: tuple[int, ...]) -> Array:
    """Return the float16 values of one parameter."""
    if len(shape) == 1:
        gain = "norm" in name and name.endswith("weight")
        array = np.full(shape, GAIN if gain else 0.0, np.float16)
        if gain:
            array[::EVERY] = OUTLIER
        return array
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    made = np.empty(shape, np.float16)
    for row in made.reshape(shape[0], -1):
        row[:] = generator.standard_normal(row.shape, dtype=np.float32) * np.float32(SPREAD)
    return made


def saved_shapes(source: Source) -> dict[str, tuple[int, ...]]:
    """Return every parameter's shape by the name that transformers saves it under."""
    import torch
    import transformers
    from transformers.core_model_loading import revert_weight_conversion

    architecture: Any = transformers.AutoModelForImageTextToText
    with torch.device("meta"):
        model = architecture.from_config(source.config)
    saved = revert_weight_conversion(model, dict(model.state_dict()))
    return {name: tuple(tensor.shape) for name, tensor in saved.items()}


def shards(shapes: dict[str, tuple[int, ...]], limit: int) -> Iterator[list[str]]:
    """Cut the names into runs of at most so many bytes."""
    names: list[str] = []
    room = limit
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        if names and size > room:
            yield names
            names, room = [], limit
        names.append(name)
        room -= size
    yield names


def write_weights(shapes: dict[str, tuple[int, ...]], directory: Path, limit: int) -> None:
    """Write the shards, one in memory at a time, and their index."""
    parts = list(shards(shapes, limit))
    places: dict[str, str] = {}
    for number, names in enumerate(parts, 1):
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        click.echo(f"{file}: {len(names)} tensors", err=True)
        save_file({name: values(name, shapes[name]) for name in names}, directory / file, {"format": "pt"})
        places |= dict.fromkeys(names, file)
    total = sum(2 * int(np.prod(shape)) for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def write_tokenizer(directory: Path, vocabulary: int) -> None:
    """Write tiny-llava's tokenizer with filler words up to a vocabulary."""
    raw = json.loads((tiny_llava_dir() / "tokenizer.json").read_text(encoding="utf-8"))
    words = raw["model"]["vocab"]
    for token in range(len(words), vocabulary):
        words[f"word{token}"] = token
    (directory / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tiny_llava_dir() / name, directory / name)


def write_settings(source: Source, directory: Path) -> None:
    """Write the configuration, the generation settings and the processor's, for the sizes of this model."""
    tiny = json.loads((tiny_llava_dir() / "config.json").read_text(encoding="utf-8"))
    source.config.image_token_index = source.config.image_token_id = tiny["image_token_index"]
    # Every part says its type, as in published checkpoints.
    for part in parts(source.config):
        part.dtype = "float16"
    source.config.save_pretrained(directory)
    shutil.copyfile(tiny_llava_dir() / "generation_config.json", directory / "generation_config.json")
    processor = json.loads((tiny_llava_dir() / "processor_config.json").read_text(encoding="utf-8"))
    height, width = source.vision.image_size
    processor["image_processor"] |= {
        "size": {"shortest_edge": min(height, width)},
        "crop_size": {"height": height, "width": width},
    }
    (directory / "processor_config.json").write_text(json.dumps(processor, indent=2), encoding="utf-8")


@click.command()
@click.option(
    "--model", default="llava-1.5-7b", show_default=True, type=click.Choice([n for n, a in ALIASES.items() if a.config])
)
@click.option("--layers", type=int, help="Decoder layers; all of them by default.")
@click.option("--vision-layers", type=click.IntRange(2), help="Layers of the tower; all of them by default.")
@click.option("--shard-mib", default=1024, show_default=True, help="Size of a shard at most, if its tensors allow it.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
def main(*, model: str, layers: int | None, vision_layers: int | None, shard_mib: int, output: Path) -> None:
    """Write the checkpoint."""
    source = resolve(model, weights="dummy", layers=layers)
    if vision_layers:
        source.config.vision_config.num_hidden_layers = vision_layers
    output.mkdir(parents=True, exist_ok=True)
    write_settings(source, output)
    write_tokenizer(output, source.decoder.vocabulary)
    write_weights(saved_shapes(source), output, shard_mib * 2**20)


if __name__ == "__main__":
    main()
