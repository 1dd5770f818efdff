"""A wheel of the installed lmmprune: what a board needs to run bundles, made without its source tree."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import zipfile
from collections.abc import Iterator
from pathlib import Path

from lmmprune import version
from lmmprune.errors import InputError
from lmmprune.version import __version__

# The trained demo model's data; a board brings its own bundle.
_LEFT_OUT = ("models/tiny_llava",)
_SUFFIXES = {".py", ".sh", ".jinja", ".typed"}
_EPOCH = (1980, 1, 1, 0, 0, 0)  # equal packages give equal wheels


def write_wheel(folder: Path) -> Path:
    """Write ``lmmprune-<version>-py3-none-any.whl`` and return its path.

    Raises:
        InputError: lmmprune isn't installed, only imported from its sources.
    """
    try:
        metadata = importlib.metadata.distribution("lmmprune")
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError("lmmprune isn't installed, so its metadata is missing: pip install -e . first") from error
    stem = f"lmmprune-{__version__}"
    path = folder / f"{stem}-py3-none-any.whl"
    about = f"{stem}.dist-info"
    rows = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:

        def add(name: str, data: bytes) -> None:
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            rows.append(f"{name},sha256={digest},{len(data)}")

        for name, file in _files():
            add(f"lmmprune/{name}", file.read_bytes())
        # A checkout that was installed as editable has its metadata in an egg-info too, under another name.
        text = metadata.read_text("METADATA") or metadata.read_text("PKG-INFO") or ""
        add(f"{about}/METADATA", text.encode())
        add(f"{about}/entry_points.txt", (metadata.read_text("entry_points.txt") or "").encode())
        tag = f"Wheel-Version: 1.0\nGenerator: lmmprune ({__version__})\nRoot-Is-Purelib: true\n"
        add(f"{about}/WHEEL", f"{tag}Tag: py3-none-any\n".encode())
        rows.append(f"{about}/RECORD,,")
        archive.writestr(zipfile.ZipInfo(f"{about}/RECORD", _EPOCH), "\n".join(rows) + "\n")
    return path


def _files() -> Iterator[tuple[str, Path]]:
    """Yield the package's files by their names below it, in order."""
    root = Path(version.__file__).parent
    waiting = [("", root)]
    found = []
    while waiting:
        prefix, folder = waiting.pop()
        # In a checkout, the package's folders are links into the tree: they are followed.
        for path in folder.iterdir():
            name = f"{prefix}{path.name}"
            if path.is_dir() and path.name != "__pycache__" and name not in _LEFT_OUT:
                waiting.append((f"{name}/", path))
            elif path.is_file() and path.suffix in _SUFFIXES:
                found.append((name, path))
    yield from sorted(found)
