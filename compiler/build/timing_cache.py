"""The builder's timing cache: what it measured of kernels, kept in a file from one build to the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmmprune.compiler.bundle.atomic import replace_file
from lmmprune.errors import InputError


def load_timing_cache(config: Any, path: Path) -> None:
    """Give a builder's configuration what was measured before; an absent file is an empty cache.

    Args:
        config: TensorRT's ``IBuilderConfig``.
        path: The file.

    Raises:
        InputError: The file can't be read, or is of another GPU or another TensorRT.
    """
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise InputError(f"the timing cache '{path}' can't be read ({error.strerror})") from error
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, False):
        raise InputError(f"the timing cache '{path}' is of another GPU or TensorRT: give another file")


def save_timing_cache(config: Any, path: Path) -> None:
    """Write what the builder knows now; the file is there whole or stays as it was.

    Raises:
        InputError: It can't be written.
    """
    try:
        with replace_file(path) as stream:
            stream.write(memoryview(config.get_timing_cache().serialize()))
    except OSError as error:
        raise InputError(f"the timing cache '{path}' can't be written ({error.strerror})") from error
