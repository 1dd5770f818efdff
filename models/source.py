"""A model to export: its family, configuration and where each weight comes from (a checkpoint, or made up)."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmmprune.errors import ModelError, require
from lmmprune.models import checkpoint
from lmmprune.models.family import DecoderSpec, Family, VisionSpec
from lmmprune.models.registry import ALIASES, family_of, fetch, locate

Array = np.ndarray[Any, Any]


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
    """

    name: str
    family: Family
    config: Any
    directory: Path | None
    dummy: bool
    tiles: tuple[int, int] | None = None

    @property
    def vision(self) -> VisionSpec:
        """The vision tower's numbers."""
        return self.family.vision(self.config)

    @property
    def decoder(self) -> DecoderSpec:
        """The decoder's numbers."""
        return self.family.decoder(self.config)

    def readers(self, model: Any) -> Mapping[str, Callable[[], Array]]:
        """Return for every parameter name of a (fake) module the function that reads or makes its values."""
        if not self.dummy:
            assert self.directory is not None
            return {n: e.read for n, e in checkpoint.by_module_name(model, checkpoint.entries(self.directory)).items()}
        return {name: _maker(name, tuple(p.shape)) for name, p in model.named_parameters(remove_duplicate=False)}


def resolve(
    model: str, *, weights: str = "auto", layers: int | None = None, tiles: tuple[int, int] | None = None
) -> Source:
    """Resolve a ``--model`` argument.

    Args:
        model: Alias, hub id or local directory.
        weights: ``auto`` (the checkpoint's) or ``dummy`` (synthetic).
        layers: Keep only so many decoder layers; with synthetic weights only.
        tiles: Rows and columns of tiles to cut pictures into; None leaves it to the family.

    Raises:
        ModelError: Unknown, not a checkpoint, or a family that isn't served.
    """
    require("torch", "export")
    dummy = weights == "dummy"
    if layers is not None and not dummy:
        raise ModelError("--layers needs --weights dummy: a trained model can't lose layers")
    where = locate(model)
    directory: Path | None = None
    if isinstance(where, Path):
        directory = where
    elif not (dummy and model in ALIASES):
        directory = fetch(where, weights=not dummy)
    config = checkpoint.read_config(directory) if directory else _architecture(model)
    family = family_of(config.model_type)
    if layers is not None:
        config = family.shrink(config, layers)
    if family.arrange is not None:
        config, tiles = family.arrange(config, tiles)
    elif tiles is not None:
        raise ModelError(f"--tiles: {family.title} takes a picture as a whole; leave it out")
    return Source(name=model, family=family, config=config, directory=directory, dummy=dummy, tiles=tiles)


def _architecture(alias: str) -> Any:
    """Return the built-in configuration of an alias."""
    known = ALIASES[alias]
    if known.config is None:
        raise ModelError(f"'{alias}' has no built-in configuration: give a directory")
    from transformers import AutoConfig

    # A copy: configurations change the parts that they are made of.
    return AutoConfig.for_model(known.family, **copy.deepcopy(dict(known.config)))


def _maker(name: str, shape: tuple[int, ...]) -> Callable[[], Array]:
    def make() -> Array:
        if len(shape) == 1:
            # Norm gains of one and zero biases keep activations in a realistic range through any depth.
            return np.full(shape, float("norm" in name and name.endswith("weight")), np.float32)
        generator = np.random.default_rng(zlib.crc32(name.encode()))
        return generator.standard_normal(shape, dtype=np.float32) * np.float32(1 / np.sqrt(shape[-1]))

    return make
