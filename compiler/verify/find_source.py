"""The checkpoint that a bundle was exported from, on whatever machine it is looked for."""

from __future__ import annotations

from pathlib import Path

from lmmprune.compiler.bundle.manifest import Manifest, ModelSource
from lmmprune.errors import InputError, ModelError
from lmmprune.models.aliases import ALIASES
from lmmprune.models.identity import Identity, identify_adapter
from lmmprune.models.source import Source, resolve


def find_source(manifest: Manifest, model: str | None, adapter: Path | None) -> Source:
    """Return a bundle's model.

    Args:
        manifest: The bundle's.
        model: ``--model``; None: what the manifest names.
        adapter: ``--adapter``.

    Raises:
        InputError: It isn't found, or isn't what was exported.
        ModelError: What ``--model`` names can't be read.
    """
    dummy = manifest.weights == "dummy"
    _check_adapter(manifest.adapter, adapter)
    frames = None if manifest.video is None else manifest.video.frames
    _, _, height, width = manifest.vision.inputs[0].shape
    try:
        source = resolve(
            _named(manifest.source) if model is None else model,
            weights="dummy" if dummy else "auto",
            layers=len(manifest.cache.past) if dummy else None,
            image_size=(int(height), int(width)),
            tiles=manifest.tiles,
            adapter=adapter,
            frames=frames,
            together=(frames or manifest.images) if manifest.joint else 1,
        )
    except ModelError as error:
        if model is not None:
            raise
        raise InputError(f"{error}; if its checkpoint lies elsewhere: --model DIRECTORY") from error
    _check_same(manifest.source, source.identity, f"'{source.name}'", "--model")
    return source


def _named(source: ModelSource) -> str:
    """Return the ``--model`` that leads to the same checkpoint on every machine."""
    if source.kind == "directory":
        raise InputError(
            f"the bundle was exported from a directory '{source.name}', and doesn't say where that lies: give it with"
            " --model"
        )
    if source.revision is None:
        return source.name
    # The revision that was exported, though the hub may have a newer one.
    alias = ALIASES.get(source.name) if source.kind == "alias" else None
    return f"{(alias and alias.hub_id) or source.name}@{source.revision}"


def _check_adapter(wanted: ModelSource | None, adapter: Path | None) -> None:
    if wanted is None:
        if adapter is not None:
            raise InputError("--adapter: the bundle was exported without one; leave it out")
        return
    if adapter is None:
        raise InputError(f"the bundle's weights hold the adapter '{wanted.name}': say where it lies with --adapter")
    _check_same(wanted, identify_adapter(adapter), f"'{adapter}'", "--adapter")


def _check_same(wanted: ModelSource, found: Identity, name: str, option: str) -> None:
    if wanted.digest != found.digest:
        raise InputError(
            f"{name} isn't what the bundle was exported from, '{wanted.name}': its configuration or list of weights"
            f" differs; give the right one with {option}"
        )
