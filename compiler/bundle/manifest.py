"""The manifest of a bundle: what was exported, from what, how it was pruned and quantized, and how to run it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from lmmprune.compiler.bundle import seal
from lmmprune.compiler.bundle.content import FORMAT, Content, File, ModelSource, Precision
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

_NOT_SEALED = 3
FILENAME = "manifest.json"
_MOST_BYTES = 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class Manifest(Content):
    """What the file of a bundle says, checked when it is read."""

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
