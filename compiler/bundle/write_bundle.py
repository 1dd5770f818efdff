"""Write a bundle atomically: all of it appears under its name, or nothing does and what was there stays.

It is made in ``.NAME.partial`` beside its place. A process that was killed leaves that directory; the next one goes on
with the weights in it, or clears it away.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lmmprune.compiler.bundle.bundle import file_sha256
from lmmprune.compiler.bundle.manifest import FILENAME, File, Manifest
from lmmprune.compiler.bundle.replace import BUNDLE, check_directory
from lmmprune.compiler.bundle.workplace import UNFINISHED, replace_directory


@dataclass(kw_only=True)
class BundleWriter:
    """A bundle in the making: put files below ``path``, then call ``finish`` once."""

    path: Path
    manifest: Manifest | None = None

    def finish(
        self,
        manifest: Manifest,
        known: Mapping[str, File] | None = None,
        progress: Callable[[str, int, int], None] = lambda what, done, of: None,
    ) -> Manifest:
        """Write the manifest, completed with size and SHA-256 of every file below ``path``, and return it.

        Args:
            manifest: Without files.
            known: Of files that were hashed while they were written.
            progress: Called with ``checksums``, the bytes that were hashed and how many there are.
        """
        for journal in self.path.glob(journal_of(Path("*")).name):
            journal.unlink()
        names = sorted(file.relative_to(self.path).as_posix() for file in self.path.rglob("*") if file.is_file())
        files = dict(known or {})
        missing = [name for name in names if name not in (FILENAME, UNFINISHED) and name not in files]
        sizes = {name: (self.path / name).stat().st_size for name in missing}
        done = 0
        for name, size in sizes.items():
            progress("checksums", done, sum(sizes.values()))
            files[name] = File(bytes=size, sha256=file_sha256(self.path / name))
            done += size
        files = dict(sorted(files.items()))
        self.manifest = dataclasses.replace(manifest, files=files)
        (self.path / FILENAME).write_text(self.manifest.to_json(), encoding="utf-8")
        return self.manifest


@contextlib.contextmanager
def write_bundle(destination: Path | str, *, resume: bool = False, force: bool = False) -> Iterator[BundleWriter]:
    """Open a sibling of ``destination`` for writing; rename it over ``destination`` on success.

    The destination must be absent, an empty directory, or, with ``force``, a bundle, which is replaced. On any
    exception the sibling goes away and the destination is as it was.

    Before: ``out/`` absent or empty; with ``force``, or a bundle
    After:  ``out/`` is the new bundle

    Args:
        destination: Directory that the bundle shall have; missing parents are made.
        resume: Leave the sibling if the process is interrupted (Ctrl-C, SIGTERM), and find in it the weights that an
            interrupted or killed process wrote.
        force: Replace a bundle that is there.

    Raises:
        InputError: The destination holds something else, can't be written, is being written by another process, or the
            disk is full.
    """
    destination = Path(destination).resolve()

    def check() -> None:
        check_directory(destination, BUNDLE, force=force)

    with replace_directory(destination, check, keep=_weights if resume else None) as partial:
        writer = BundleWriter(path=partial)
        yield writer
        if writer.manifest is None:
            raise RuntimeError("finish() was not called on the bundle writer")


def journal_of(file: Path) -> Path:
    """Return where it stands how far a file of weights is written."""
    return file.with_name(f".{file.name}.journal")


def _weights(partial: Path) -> set[Path]:
    """Return what an earlier process left to go on with: files of weights, each with its journal."""
    files = {file for file in partial.iterdir() if file.is_file() and not file.is_symlink()}
    kept = {file for file in files if journal_of(file) in files}
    return kept | {journal_of(file) for file in kept}
