"""Where what can be made again is kept on disk."""

from __future__ import annotations

import os
from pathlib import Path

from lmmprune.errors import require

VARIABLE = "LMMPRUNE_CACHE"


def cache_directory(name: str) -> Path:
    """Return the directory of one kind of cache; it may not exist yet.

    Below ``$LMMPRUNE_CACHE`` where that is set, else where the system keeps such things: ``~/.cache/lmmprune``.

    Raises:
        MissingExtraError: platformdirs isn't installed.
    """
    given = os.environ.get(VARIABLE)
    if given:
        return Path(given) / name
    path: Path = require("platformdirs", "export").user_cache_path("lmmprune", appauthor=False)
    return path / name
