"""Tell whether an interrupted export was of the same thing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmmprune.compiler.export.decide import Decision
from lmmprune.compiler.export.describe import tools
from lmmprune.models.adapter import WEIGHTS
from lmmprune.models.config_file import ADAPTER
from lmmprune.models.source import Source

_NOT_CONTENT = ("output", "resume", "template", "force", "cache")


def fingerprint(decision: Decision, calibration: Mapping[str, Any] | None) -> str:
    """Return a digest of everything that the weights of a bundle depend on.

    The checkpoint's files count by path, size and time of change.

    Args:
        decision: What is going to be done.
        calibration: What it said; None before, and without.
    """
    request, source, data = decision.request, decision.source, decision.data
    asked = {key: value for key, value in dataclasses.asdict(request).items() if key not in _NOT_CONTENT}
    # A method of the user's own is its fields here, of which others may have the same.
    asked["method_name"] = request.method if isinstance(request.method, str) else request.method.name
    files = []
    adapter = [source.adapter / name for name in (ADAPTER, WEIGHTS)] if source.adapter else []
    for file in [*sorted(_files(source)), *adapter]:
        status = file.stat()
        files.append((str(file.resolve()), status.st_size, status.st_mtime_ns))
    parts = [asked, files, source.quantization, tools(), data.digest() if data else None, calibration]
    return hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()


def _files(source: Source) -> set[Path]:
    """Return the files that hold a checkpoint's tensors; the parts of a packed weight may lie in several."""
    packed = (part.file for weight in source.packed.values() for part in weight.parts.values())
    return {*(entry.file for entry in source.entries.values()), *packed}
