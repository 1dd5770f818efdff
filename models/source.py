"""A model to export: its family, configuration and where each weight comes from (a checkpoint, or made up)."""

from __future__ import annotations

import copy
import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmmprune.errors import ModelError, require
from lmmprune.models import config_file, packed, shards
from lmmprune.models.adapter import Adapter, read_settings
from lmmprune.models.aliases import ALIASES
from lmmprune.models.checkpoint_reader import CheckpointReader, Merged, Reader
from lmmprune.models.configure import Reach, as_traced, check_decoder, put_together, reach, without_windows
from lmmprune.models.family import DecoderSpec, Family, VisionSpec
from lmmprune.models.identity import Identity, identify, weights_of
from lmmprune.models.quantized.described import Described
from lmmprune.models.quantized.packed_weight import Dequantized, PackedWeight
from lmmprune.models.registry import family_of, fetch, locate
from lmmprune.models.weight_names import by_module_name, renaming
from lmmprune.stored import Array, Stored


@dataclass(frozen=True, kw_only=True)
class Source:
    """What ``--model`` and ``--weights`` resolve to.

    Attributes:
        name: What the user asked for.
        family: The family that serves it.
        config: The transformers configuration.
        directory: Local checkpoint, or None for an architecture without one.
        dummy: Weights are synthetic: for latency, memory and size, not for answers.
        tiles: Rows and columns of tiles that every picture is cut into; None: a picture goes in as a whole.
        reach: How many positions the decoder serves, and what ends there.
        quantization: What the configuration says of a quantization of the weights.
        weights_file: File or index of the weights that the configuration names; None: the usual ones.
        adapter: Directory of a LoRA adapter that is merged into the weights; None: none.
    """

    name: str
    family: Family
    config: Any
    directory: Path | None
    dummy: bool
    tiles: tuple[int, int] | None = None
    reach: Reach
    quantization: Mapping[str, Any] | None = None
    weights_file: str | None = None
    adapter: Path | None = None

    @property
    def vision(self) -> VisionSpec:
        """The vision tower's numbers."""
        return self.family.vision(self.config)

    @property
    def decoder(self) -> DecoderSpec:
        """The decoder's numbers."""
        return dataclasses.replace(self.family.decoder(self.config), max_positions=self.reach.positions)

    @functools.cached_property
    def checkpoint(self) -> CheckpointReader:
        """Reads the tensors, and collects what isn't a number in them."""
        return CheckpointReader(self.directory)

    @functools.cached_property
    def identity(self) -> Identity:
        """Which checkpoint it is, wherever it lies."""
        weights = weights_of(self.directory, self.weights_file) if self.directory and not self.dummy else None
        return identify(self.name, self.directory, weights)

    @functools.cached_property
    def entries(self) -> Mapping[str, Stored]:
        """Every tensor of the checkpoint by its name on disk; none with synthetic weights.

        Raises:
            ModelError: No safetensors, a shard that is missing or damaged, or weights in integers that aren't read.
        """
        if self.directory is None or self.dummy:
            return {}
        found = shards.entries(self.directory, self.weights_file)
        return packed.unpack(self.directory, self.quantization, found)

    @functools.cached_property
    def packed(self) -> Mapping[str, PackedWeight]:
        """The weights that the checkpoint holds in integers, by their names on disk."""
        return {name: entry for name, entry in self.entries.items() if isinstance(entry, PackedWeight)}

    @property
    def integers(self) -> Described | None:
        """How they are stored; None: there are none."""
        if self.directory is None or not self.packed:
            return None
        return packed.described(self.directory, self.quantization)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the user should know of how the checkpoint was read, one line each."""
        said = [f"positions end at {self.reach.positions}, with {self.reach.why}"] if self.reach.why else []
        if self.directory is not None and not self.dummy:
            adapter = config_file.ADAPTER
            beside = (self.directory / adapter).is_file() and self.adapter is None
            said += [
                line
                for line in (
                    self.integers.remark if self.integers else packed.remark(self.quantization),
                    shards.passed_over(self.directory, self.weights_file),
                    f"'{self.directory}' has '{adapter}', too: the adapter isn't merged unless --adapter names it"
                    if beside
                    else None,
                )
                if line
            ]
        return tuple(said)

    @functools.cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every weight, by its name on disk or in the module; no weight is read."""
        if not self.dummy:
            return {name: entry.shape for name, entry in self.entries.items()}
        import torch
        import transformers

        auto: Any = transformers.AutoModelForImageTextToText
        with torch.device("meta"):
            model = auto.from_config(self.config)
        return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}

    def readers(self, model: Any) -> Mapping[str, Callable[[], Array]]:
        """Return for every parameter name of a (fake) module the function that reads or makes its values."""
        if not self.dummy:
            return self._readers(model)
        return {name: _maker(name, tuple(p.shape)) for name, p in model.named_parameters(remove_duplicate=False)}

    def adapted(self, model: Any) -> Adapter | None:
        """Return the adapter by the names of a (fake) module's parameters; None without one.

        Raises:
            ModelError: It doesn't fit the module.
        """
        return Adapter.read(self.adapter, model, renaming(model)) if self.adapter else None

    def _readers(self, model: Any) -> dict[str, Callable[[], Array]]:
        found = by_module_name(model, self.entries)
        adapter = self.adapted(model)
        if adapter is not None:
            found |= adapter.replaced
        readers = {name: self._reader(stored) for name, stored in found.items()}
        merged = adapter.updates if adapter is not None else {}
        return {**readers, **{name: Merged(reader=readers[name], update=merged[name]) for name in merged}}

    def _reader(self, stored: Stored) -> Any:
        if isinstance(stored, PackedWeight):
            return Dequantized(packed=stored, checkpoint=self.checkpoint)
        return Reader(stored=stored, checkpoint=self.checkpoint)


def resolve(
    model: str,
    *,
    weights: str = "auto",
    layers: int | None = None,
    image_size: tuple[int, int] | None = None,
    tiles: tuple[int, int] | None = None,
    adapter: Path | None = None,
    together: int = 1,
) -> Source:
    """Resolve a ``--model`` argument.

    Args:
        model: Alias, hub id or local directory.
        weights: ``auto`` (the checkpoint's) or ``dummy`` (synthetic).
        layers: Keep only so many decoder layers; with synthetic weights only.
        image_size: Height and width of the pictures in pixels, for towers that take any; None: the family's own choice.
        tiles: Rows and columns of tiles to cut pictures into; None leaves it to the family. Where a tower sees one at
            a time it makes no difference to the graphs.
        adapter: Directory of a LoRA adapter to merge into the weights.
        together: Pictures that are seen as one, among all of whose tokens is chosen.

    Raises:
        ModelError: Unknown, not a checkpoint, or a family that isn't served.
    """
    require("torch", "export")
    dummy = weights == "dummy"
    if layers is not None and not dummy:
        raise ModelError("--layers needs --weights dummy: a trained model can't lose layers")
    if adapter is not None:
        if dummy:
            raise ModelError("--adapter with --weights dummy: an adapter is merged into a checkpoint's weights")
        read_settings(adapter)
    where = locate(model)
    directory: Path | None = None
    if isinstance(where, Path):
        directory = where
    elif not (dummy and model in ALIASES):
        directory = fetch(where, weights=not dummy)
    raw = config_file.read_raw(directory) if directory else {}
    config = config_file.read_config(directory, raw) if directory else _architecture(model)
    family = family_of(config.model_type)
    with config_file.reading(config):
        check_decoder(config.text_config)
        quantization = packed.take_out(config, raw)
        how_far = reach(config.text_config)
        without_windows(config.text_config)
        as_traced(config)
        if layers is not None:
            config = family.shrink(config, layers)
        if family.arrange is not None:
            config, tiles = family.arrange(config, tiles)
        elif tiles is not None:
            if family.split is None:
                raise ModelError(f"--tiles: {family.title} takes a picture as a whole; leave it out")
            tiles = None  # the tower sees one tile, whatever the grid
        if image_size is not None:
            _fix_size(family, config, image_size)
        if together > 1:
            if not family.joint:
                raise ModelError(f"--joint: not of {family.title} yet: leave it out, and each picture keeps its own")
            put_together(config, together)
        # Whatever a family doesn't find or can't serve is said now.
        family.vision(config), family.decoder(config)
    return Source(
        name=model,
        family=family,
        config=config,
        directory=directory,
        dummy=dummy,
        tiles=tiles,
        reach=how_far,
        quantization=quantization,
        weights_file=getattr(config, "transformers_weights", None),
        adapter=adapter,
    )


def _fix_size(family: Family, config: Any, image_size: tuple[int, int]) -> None:
    spec = family.vision(config)
    if spec.any_size:
        config.vision_config.image_size = list(image_size)
        # Refuses a size that the tower can't take.
        family.vision(config)
    elif image_size != spec.image_size:
        height, width = spec.image_size
        raise ModelError(f"--image-size: {family.title} takes {height} x {width} pixels; leave it out")


def _architecture(alias: str) -> Any:
    """Return the built-in configuration of an alias."""
    entry = ALIASES[alias]
    if entry.config is None:
        raise ModelError(f"'{alias}' has no built-in configuration: give a directory")
    from transformers import AutoConfig

    # A copy: configurations change the parts that they are made of.
    return AutoConfig.for_model(entry.family, **copy.deepcopy(dict(entry.config)))


def _maker(name: str, shape: tuple[int, ...]) -> Callable[[], Array]:
    def make() -> Array:
        if len(shape) == 1:
            # Gains of one (of norms, and of InternViT's layers) and zero biases keep activations in a realistic range
            # through any depth.
            gain = ("norm" in name and name.endswith("weight")) or "lambda" in name
            return np.full(shape, float(gain), np.float32)
        generator = np.random.default_rng(zlib.crc32(name.encode()))
        return generator.standard_normal(shape, dtype=np.float32) * np.float32(1 / np.sqrt(shape[-1]))

    return make
