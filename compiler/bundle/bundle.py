"""Open a bundle: the directory that ``export`` leaves and that everything else reads."""

from __future__ import annotations

import dataclasses
import hashlib
import posixpath
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lmmprune.compiler.bundle.external_data import external_files
from lmmprune.compiler.bundle.manifest import FILENAME, Manifest
from lmmprune.compiler.bundle.workplace import is_unfinished, recover
from lmmprune.contained import stray
from lmmprune.errors import BundleError
from lmmprune.limits import is_directory, is_file

TOKENIZER = "tokenizer.json"
PREPROCESSOR = "preprocessor.json"
ASSETS = (TOKENIZER, PREPROCESSOR)
ENGINES = "engines"

# Files up to this size are hashed whenever a bundle is opened (about 10 ms); `verify` hashes the larger ones too.
_CHECKED_AT_OPEN = 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle on disk whose files are there with the sizes that its manifest states."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path | str) -> Bundle:
        """Open a bundle; verify names and sizes of all files, and the checksums of the small ones.

        Args:
            path: Directory that ``lmmprune export`` wrote.

        Raises:
            BundleError: It isn't a bundle, or files are missing, truncated or edited.
        """
        path = Path(path)
        if not is_directory(path):
            recover(path.absolute())
        if not is_directory(path):
            what = "is a file" if is_file(path) else "doesn't exist"
            raise BundleError(f"'{path}' {what}: give the directory that 'lmmprune export -o' wrote")
        if is_unfinished(path):
            raise BundleError(
                f"'{path}' is half a bundle: its export still runs, or was interrupted and goes on with --resume; give "
                "the directory of one that was finished"
            )
        bundle = cls(path=path, manifest=_load(path))
        behind = [bucket.graph.file for bucket in bundle.manifest.buckets]
        behind += [graph.file for view in bundle.manifest.sizes for graph in view.graphs.values()]
        between = [] if bundle.manifest.selection is None else [bundle.manifest.selection.file]
        needed = (bundle.manifest.vision.file, bundle.manifest.decoder.file, *behind, *between, *ASSETS)
        for name in needed:
            if name not in bundle.manifest.files:
                raise BundleError(f"the manifest of '{path}' doesn't list '{name}': export again")
        for name in bundle.manifest.files:
            bundle._check_size(name)
        bundle._check_hashes(limit=_CHECKED_AT_OPEN)
        for graph in bundle.manifest.graphs.values():
            bundle._check_weights(graph.file)
        return bundle

    @classmethod
    def open_assets(cls, path: Path | str) -> Bundle:
        """Open a directory with all of a bundle but its graphs, which somebody else runs.

        Raises:
            BundleError: The manifest, the tokenizer or the preprocessing steps are missing or edited.
        """
        manifest = _load(Path(path))
        try:
            files = {name: manifest.files[name] for name in ASSETS}
        except KeyError as error:
            raise BundleError(f"the manifest of '{path}' doesn't list {error}: export again") from error
        bundle = cls(path=Path(path), manifest=dataclasses.replace(manifest, files=files))
        bundle.verify_checksums()
        return bundle

    def verify_checksums(self) -> None:
        """Hash every file and compare it with the manifest.

        Raises:
            BundleError: A file is missing or differs from what was exported.
        """
        for name in self.manifest.files:
            self._check_size(name)
        self._check_hashes(limit=None)

    def file(self, name: str) -> Path:
        """Return the path of a file that the manifest lists.

        Raises:
            BundleError: The manifest doesn't list it, or it lies outside of the bundle.
        """
        if name not in self.manifest.files:
            raise BundleError(f"'{name}' is not a file of the bundle '{self.path}': export again")
        _check_inside(self.path, name)
        return self.path / name

    @property
    def vision(self) -> Path:
        """Path of the vision graph."""
        return self.file(self.manifest.vision.file)

    @property
    def decoder(self) -> Path:
        """Path of the decoder graph."""
        return self.file(self.manifest.decoder.file)

    @property
    def bytes(self) -> int:
        """Size of the graphs with their weights in bytes: every file but JSON files, pictures and engines."""
        return sum(
            entry.bytes
            for name, entry in self.manifest.files.items()
            if not name.endswith((".json", ".png")) and PurePosixPath(name).parts[0] != ENGINES
        )

    @property
    def sha256(self) -> str:
        """SHA-256 over the names and checksums of all files: what was measured is told by it, wherever it lies.

        Engines and what else is made of a bundle later don't change it, nor does the time of its export.
        """
        lines = (f"{entry.sha256}  {name}\n" for name, entry in sorted(self.manifest.files.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def _check_weights(self, graph: str) -> None:
        """Refuse weights that aren't files of the bundle: runtimes read them from wherever the graph says."""
        folder = posixpath.dirname(graph)
        for location in external_files(self.file(graph)):
            if posixpath.normpath(posixpath.join(folder, location)) not in self.manifest.files:
                raise BundleError(
                    f"'{graph}' in the bundle '{self.path}' has weights in {location!r}, which isn't a file of the "
                    "bundle: export again"
                )

    def _check_size(self, name: str) -> None:
        expected = self.manifest.files[name].bytes
        try:
            found = self.file(name).stat().st_size
        except OSError as error:
            raise BundleError(f"'{name}' is missing from the bundle '{self.path}': export again") from error
        if found != expected:
            raise BundleError(
                f"'{name}' in the bundle '{self.path}' has {found} bytes, exported were {expected}: export again"
            )

    def _check_hashes(self, *, limit: int | None) -> None:
        for name, entry in self.manifest.files.items():
            if (limit is None or entry.bytes <= limit) and file_sha256(self.file(name)) != entry.sha256:
                raise BundleError(
                    f"'{name}' in the bundle '{self.path}' was changed after the export (its checksum differs): "
                    "export again"
                )


def _load(path: Path) -> Manifest:
    _check_inside(path, FILENAME)
    return Manifest.load(path / FILENAME)


def _check_inside(path: Path, name: str) -> None:
    if reason := stray(path, name):
        raise BundleError(
            f"{name[:100]!r} is not a file of the bundle '{path}': it {reason}; put what belongs there into the "
            "bundle, or export again"
        )


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits, read in pieces of 1 MiB.

    Raises:
        BundleError: The file can't be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while piece := stream.read(2**20):
                digest.update(piece)
    except OSError as error:
        raise BundleError(f"'{path}' can't be read ({error.strerror})") from error
    return digest.hexdigest()
