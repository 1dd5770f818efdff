"""Write a bundle atomically: all of it appears under its name, or nothing does and what was there stays."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lmmprune.compiler.bundle import ENGINES, file_sha256
from lmmprune.compiler.manifest import FILENAME, File, Manifest
from lmmprune.errors import InputError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_WAY = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


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
    made = make_parents(destination)
    temporary = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}.tmp")
    try:
        with terminable():
            temporary.mkdir()
            writer = BundleWriter(path=temporary)
            yield writer
            if writer.manifest is None:
                raise RuntimeError("finish() was not called on the bundle writer")
            _replace(temporary, destination)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        if (refused := refusal(error, destination)) is not None:
            raise refused from error
        raise


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM (``timeout``, a machine shutting down) clean up as Ctrl-C does, where handlers can be set."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


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


def make_parents(destination: Path) -> list[Path]:
    """Make missing parent directories; return those made, the deepest first."""
    made: list[Path] = []
    missing = [parent for parent in destination.parents if not parent.exists()]
    try:
        for parent in reversed(missing):
            parent.mkdir()
            made.insert(0, parent)
    except OSError as error:
        for parent in made:
            parent.rmdir()
        raise InputError(f"can't make the directory '{destination.parent}' ({error.strerror})") from error
    return made


def _replace(temporary: Path, destination: Path) -> None:
    """Rename over the destination; a bundle that was there is only deleted when the new one has its name."""
    if not destination.exists():
        os.rename(temporary, destination)
        return
    old = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}.old")
    os.rename(destination, old)
    try:
        os.rename(temporary, destination)
    except BaseException:
        os.rename(old, destination)
        raise
    shutil.rmtree(old, ignore_errors=True)


def refusal(error: BaseException, destination: Path) -> InputError | None:
    """Return the one-line refusal for a full or unwritable disk, None for everything else."""
    # Writers in Rust or C++ (safetensors, protobuf) report a full disk in words only.
    full = isinstance(error, OSError) and error.errno in _NO_SPACE
    if full or "No space left on device" in str(error):
        free = shutil.disk_usage(_existing(destination)).free
        return InputError(
            f"the disk of '{destination}' is full ({free / 2**20:.0f} MiB left): nothing was written; "
            "free some space or give another directory"
        )
    if isinstance(error, OSError) and error.errno in _NO_WAY:
        return InputError(f"can't write below '{destination.parent}' ({error.strerror}): give another directory")
    return None


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())
