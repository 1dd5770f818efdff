"""Keep what a bundle answered on disk, so that comparing the next bundle with it costs only the next one's answers."""

from __future__ import annotations

import hashlib
import io
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lmmprune.compiler.bundle.atomic import replace_file
from lmmprune.compiler.bundle.bundle import Bundle, file_sha256
from lmmprune.compiler.bundle.manifest import FILENAME
from lmmprune.compiler.compare.record import LIKELIEST, Recorded
from lmmprune.compiler.runtime.open_picture import to_rgb
from lmmprune.errors import LmmpruneWarning

_FIELDS = ("tokens", "ids", "log_probabilities")


class KeptAnswers:
    """The answers of one bundle at one length, by picture and prompt; in memory, and on disk if there is a folder."""

    def __init__(self, folder: Path | None, bundle: Bundle, limit: int) -> None:
        """Read what is there.

        Args:
            folder: Where such answers are kept; None: nowhere.
            bundle: Whose answers.
            limit: Tokens at most of each.
        """
        about = f"{file_sha256(bundle.path / FILENAME)} {limit} {LIKELIEST}"
        self._file = None if folder is None else folder / f"{hashlib.sha256(about.encode()).hexdigest()[:32]}.npz"
        self._answers: dict[str, Recorded] = {}
        self._new = False
        if self._file is not None and self._file.is_file():
            self._answers = _read(self._file)

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> Recorded:
        return self._answers[key]

    def __setitem__(self, key: str, answer: Recorded) -> None:
        self._answers[key] = answer
        self._new = True

    def save(self) -> None:
        """Write them, if any are new: the file is whole or as it was.

        Raises:
            OSError: The folder can't be written.
        """
        if self._file is None or not self._new:
            return
        with replace_file(self._file) as stream:
            stream.write(pack_answers(self._answers))
        self._new = False


def pack_answers(answers: Mapping[str, Recorded]) -> bytes:
    """Return answers by name as one NumPy archive."""
    packed = io.BytesIO()
    np.savez(packed, **{f"{key}/{field}": getattr(one, field) for key, one in answers.items() for field in _FIELDS})
    return packed.getvalue()


def unpack_answers(file: Path) -> dict[str, Recorded]:
    """Read what ``pack_answers`` made.

    Raises:
        OSError: It can't be read.
        ValueError: It isn't such an archive, or is damaged.
        KeyError: Something is missing in it.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            whole = {name: arrays[name] for name in arrays.files}
    except (EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"not a whole archive: {error}") from error
    keys = {name.split("/")[0] for name in whole}
    return {key: Recorded(**{field: whole[f"{key}/{field}"] for field in _FIELDS}) for key in keys}


def _read(file: Path) -> dict[str, Recorded]:
    try:
        return unpack_answers(file)
    except (OSError, ValueError, KeyError) as error:
        warnings.warn(
            f"the kept answers in '{file}' can't be read ({error}): they are made again", LmmpruneWarning, stacklevel=3
        )
        return {}


def example_key(pictures: Sequence[Image.Image], prompt: str) -> str:
    """Return what tells pictures with a prompt from others: a digest of their pixels and the text."""
    rgb = [to_rgb(picture) for picture in pictures]
    sizes = " ".join(f"{one.width}x{one.height}" for one in rgb)
    digest = hashlib.sha256(f"{sizes}\n{prompt}\n".encode())
    for one in rgb:
        digest.update(one.tobytes())
    return digest.hexdigest()[:32]
