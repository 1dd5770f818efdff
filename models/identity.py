"""Which checkpoint something is, in words that mean the same on every machine."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path

from lmmprune.errors import ModelError
from lmmprune.models import shards
from lmmprune.models.adapter import WEIGHTS
from lmmprune.models.aliases import ALIASES
from lmmprune.models.config_file import ADAPTER


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A checkpoint without its place on this machine.

    Attributes:
        kind: ``alias``, ``hub`` or ``directory``.
        name: The alias, the hub's ``owner/name``, or the directory's own name.
        revision: Commit of the hub's snapshot.
        digest: SHA-256 over configuration and list of weights; None without a checkpoint.
    """

    kind: str
    name: str
    revision: str | None = None
    digest: str | None = None


def identify(model: str, directory: Path | None, weights: Path | None) -> Identity:
    """Return what a ``--model`` argument stands for.

    Args:
        model: The argument.
        directory: What it led to; None: an architecture without a checkpoint.
        weights: File or index of its weights; None with synthetic ones.
    """
    digest = _digest(directory / "config.json", weights) if directory else None
    # A hub's cache holds models--OWNER--NAME/snapshots/COMMIT.
    revision = directory.name if directory and directory.parent.name == "snapshots" else None
    if model in ALIASES:
        return Identity(kind="alias", name=model, revision=revision, digest=digest)
    if directory is not None and Path(model).is_dir():
        return Identity(kind="directory", name=directory.resolve().name, digest=digest)
    return Identity(kind="hub", name=model.partition("@")[0], revision=revision, digest=digest)


def identify_adapter(directory: Path) -> Identity:
    """Return what ``--adapter`` stands for."""
    digest = _digest(directory / ADAPTER, directory / WEIGHTS)
    return Identity(kind="directory", name=directory.resolve().name, digest=digest)


def weights_of(directory: Path, named: str | None) -> Path | None:
    """Return the file or index of a checkpoint's weights, None where it has none that are read."""
    try:
        return shards.chosen(directory, named)
    except ModelError:
        return None


def _digest(config: Path, weights: Path | None) -> str:
    found = hashlib.sha256(config.read_bytes())
    if weights is not None:
        found.update(_listed(weights))
    return found.hexdigest()


def _listed(weights: Path) -> bytes:
    """Return an index of shards, or the header of a single file: names, types and places, no values."""
    if weights.name.endswith(".json"):
        return weights.read_bytes()
    with weights.open("rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
        return stream.read(size)
