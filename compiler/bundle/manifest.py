"""The manifest of a bundle: what was exported, from what, how it was pruned and quantized, and how to run it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmmprune.compiler.bundle.convert import structure, unstructure
from lmmprune.compiler.bundle.interface import Bucket, Cache, Graph, Interface, Prompt, ScheduledSite, Tensor
from lmmprune.errors import BundleError

__all__ = [
    "FILENAME",
    "FORMAT",
    "Bucket",
    "Cache",
    "File",
    "Graph",
    "Interface",
    "Manifest",
    "ModelSource",
    "Precision",
    "Prompt",
    "ScheduledSite",
    "Tensor",
]

FORMAT = 3
FILENAME = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where weights came from, in words that mean the same on every machine.

    Attributes:
        kind: ``alias``, ``hub`` or ``directory``.
        name: The alias, the hub's ``owner/name``, or the directory's own name, without the path to it.
        revision: Commit of the hub's snapshot; None elsewhere.
        digest: SHA-256 over configuration and list of weights, which tells checkpoints apart; None without a
            checkpoint, and for a model that the package brings along.
    """

    kind: str
    name: str
    revision: str | None = None
    digest: str | None = None


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Floating-point type, and the INT8 scheme with the source of its calibration (None: not quantized)."""

    dtype: str
    int8: str | None = None
    calibration: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class File:
    """Size and checksum of one file of the bundle."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest(Interface):
    """Everything that a run-time, a verifier or a reader needs to know of a bundle."""

    model: str
    family: str
    source: ModelSource
    weights: str  # "checkpoint" or "dummy"
    method: str | None
    parameters: Mapping[str, Any]
    precision: Precision
    target: str
    opset: int
    requested_tokens: int | None  # visual tokens per decoder layer that were asked for; None: a whole schedule was
    average_tokens: float  # visual tokens that a decoder layer hands on, on average
    prefix: int  # tokens of every prompt before the image
    flops: Mapping[str, Mapping[str, float]]  # {"vision": {"before": .., "after": ..}, "prefill": {..}}
    tools: Mapping[str, str]
    created: str
    adapter: ModelSource | None = None  # the LoRA adapter that was merged into the weights
    # transformers' generation settings that change greedy answers: {"applied": {name: value}, "ignored": {..}}
    generation: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    files: Mapping[str, File] = field(default_factory=dict)
    format: int = FORMAT

    def to_json(self) -> str:
        """Return the manifest as JSON text."""
        return json.dumps(unstructure(self), indent=2) + "\n"

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read a manifest.

        Raises:
            BundleError: The file is missing, isn't JSON, or is of another format.
        """
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise BundleError(f"no {FILENAME} in '{path.parent}': not a bundle made by 'lmmprune export'") from error
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise BundleError(f"'{path}' can't be read ({error}): export again") from error
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            found = raw.get("format") if isinstance(raw, dict) else type(raw).__name__
            raise BundleError(f"'{path}' has format {found!r}, this version reads format {FORMAT}: export again")
        try:
            return structure(raw, cls)
        except ValueError as error:
            raise BundleError(f"'{path}' is not a valid manifest ({error}): export again") from error
