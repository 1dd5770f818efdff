"""What lies inside of a folder: a file below it when all links are followed, or one of a model hub's cache."""

from __future__ import annotations

import stat
from pathlib import Path


def stray(folder: Path, name: str) -> str | None:
    """Return why a name isn't that of a file inside of a folder; None: it is, or nothing is there.

    A hub's cache keeps a model's files in ``blobs`` beside ``snapshots/REVISION``, which holds links to them: these are
    inside of the snapshot. Everything else counts by where it leads: a folder that somebody hands on must not bring
    other files of this machine into an answer, a plan or a server.

    Args:
        folder: The folder; itself it may be a link.
        name: Below it, with ``/`` between its parts.
    """
    parts = name.split("/")
    if not name.isprintable() or any(part in ("", ".", "..") for part in parts):
        return "leads out of it, or isn't a plain name"
    try:
        root = folder.resolve()
        path = (folder / name).resolve(strict=True)
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError, ValueError):  # a circle of links, before Python 3.13
        return "can't be reached"
    if not path.is_relative_to(root) and path.parent not in _blobs(root):
        return "is a link that leads out of it"
    return None if stat.S_ISREG(mode) else "isn't a file"


def _blobs(root: Path) -> list[Path]:
    """Return where a hub's cache keeps the files of a snapshot, for a folder in one."""
    return [above.parent.parent / "blobs" for above in (root, *root.parents) if above.parent.name == "snapshots"]
