"""Write a bundle atomically: all of it appears under its name, or nothing does and what was there stays."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lmmprune.compiler.bundle import ENGINES, file_sha256
from lmmprune.compiler.manifest import FILENAME, File, Manifest
from lmmprune.compiler.write_directory import write_directory
from lmmprune.errors import InputError


@dataclass(kw_only=True)
class BundleWriter:
    """A bundle in the making: put files below ``path``, then call ``finish`` once."""

    path: Path
    manifest: Manifest | None = None

    def finish(self, manifest: Manifest) -> Manifest:
        """Write the manifest, completed with size and SHA-256 of every file below ``path``, and return it."""
        files = {
            file.relative_to(self.path).as_posix(): File(bytes=file.stat().st_size, sha256=file_sha256(file))
            for file in sorted(self.path.rglob("*"))
            if file.is_file() and file != self.path / FILENAME
        }
        self.manifest = dataclasses.replace(manifest, files=files)
        (self.path / FILENAME).write_text(self.manifest.to_json(), encoding="utf-8")
        return self.manifest


@contextlib.contextmanager
def write_bundle(destination: Path | str) -> Iterator[BundleWriter]:
    """Open a temporary sibling of ``destination`` for writing; rename it over ``destination`` on success.

    The destination must be absent, an empty directory, or a bundle, which is replaced. On any exception, Ctrl-C
    included, the temporary directory goes away and the destination is as it was.

    Before: ``out/`` absent, empty, or a bundle
    After:  ``out/`` is the new bundle

    Args:
        destination: Directory that the bundle shall have; missing parents are made.

    Raises:
        InputError: The destination holds something else, can't be written, or the disk is full.
    """
    destination = Path(destination).resolve()
    _check_replaceable(destination)
    with write_directory(destination) as temporary:
        writer = BundleWriter(path=temporary)
        yield writer
        if writer.manifest is None:
            raise RuntimeError("finish() was not called on the bundle writer")


def _check_replaceable(destination: Path) -> None:
    """Refuse a destination whose replacement would lose something that isn't a bundle."""
    if not destination.exists():
        return
    if not destination.is_dir():
        raise InputError(f"'{destination}' is a file: give a directory for the bundle")
    entries = sorted(path.relative_to(destination).as_posix() for path in destination.rglob("*") if path.is_file())
    if not any(destination.iterdir()):
        return
    listed = _listed_files(destination / FILENAME)
    if listed is None:
        raise InputError(f"'{destination}' isn't empty and isn't a bundle: give another directory, or empty this one")
    for name in entries:
        if name != FILENAME and name not in listed and PurePosixPath(name).parts[0] != ENGINES:
            raise InputError(
                f"'{destination}' holds '{name}', which isn't part of the bundle there: move it away first"
            )


def _listed_files(path: Path) -> set[str] | None:
    """Return the files that a bundle's manifest lists, None if it isn't one; an old format is a bundle too."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(raw, dict) or not {"format", "vision", "decoder", "files"} <= raw.keys():
        return None
    return set(raw["files"]) if isinstance(raw["files"], dict) else None
