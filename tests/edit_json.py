"""Edit what is sealed, and seal it again: what is behind the seal is tested for itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmmprune.compiler.bundle import seal


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a sealed JSON file, with a seal that holds."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    raw.pop(seal.SEAL, None)
    change(raw)
    path.write_text(json.dumps(seal.sealed(raw)), encoding="utf-8")
