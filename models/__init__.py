"""What is known of models: ``families`` say where things are, one file each; the rest reads and traces checkpoints."""

from __future__ import annotations

import contextlib
import os

from lmmprune.caches import cache_directory
from lmmprune.errors import MissingExtraError


def _keep_out_of_temporary_folder() -> None:
    """Let torch's compiler, which isn't used but makes its cache when it is imported, make it among our caches."""
    with contextlib.suppress(MissingExtraError, OSError):
        folder = cache_directory("torchinductor")
        there = next(path for path in folder.absolute().parents if path.exists())
        if os.access(there, os.W_OK):
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


_keep_out_of_temporary_folder()
