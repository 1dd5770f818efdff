"""The manifest of a bundle: what was exported, from what, how it was pruned and quantized, and how to run it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmmprune.compiler.bundle import seal
from lmmprune.compiler.bundle.convert import structure, unstructure
from lmmprune.compiler.bundle.interface import Bucket, Cache, Graph, Interface, Prompt, ScheduledSite, Tensor
from lmmprune.compiler.bundle.manifest_rules import check_manifest
from lmmprune.errors import BundleError
from lmmprune.limits import read_json, shortened

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

FORMAT = 4
_NOT_SEALED = 3
"""The format before, which is the same without a seal."""
FILENAME = "manifest.json"
_MOST_BYTES = 16 * 2**20


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
    requested_tokens: int  # visual tokens per decoder layer that were asked for
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
        """Return the manifest as JSON text, sealed."""
        return json.dumps(seal.sealed(unstructure(self)), indent=2) + "\n"

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read a manifest; its seal must be whole, unless ``seal.unsealed`` says that it may be read without.

        Raises:
            BundleError: The file is missing, isn't JSON, is of another format, says what can't be, or was edited.
        """
        try:
            raw = read_json(path, finite=True, most=_MOST_BYTES)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BundleError(f"no {FILENAME} in '{path.parent}': not a bundle made by 'lmmprune export'") from error
        except (OSError, ValueError) as error:
            raise BundleError(f"'{path}' can't be read ({error}): export again") from error
        form = raw.get("format") if isinstance(raw, dict) else type(raw).__name__
        if form == _NOT_SEALED and not seal.allowed():
            raise BundleError(
                f"'{path}' has format {form}, which has no seal to check it by: export again, or read it as it is with"
                " --unsealed"
            )
        if form not in (FORMAT, _NOT_SEALED) or isinstance(form, bool | float):
            raise BundleError(
                f"'{path}' has format {shortened(form)}, this version reads format {FORMAT}: export again"
            )
        try:
            manifest = structure({name: value for name, value in raw.items() if name != seal.SEAL}, cls)
            check_manifest(manifest)
        except ValueError as error:
            raise BundleError(f"'{path}' is not a valid manifest ({error}): export again") from error
        if not seal.holds(raw):
            raise BundleError(
                f"'{path}' was changed after the export (its seal is missing or another): export again, or read it as"
                " it is with --unsealed"
            )
        return manifest
