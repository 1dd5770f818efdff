"""Pictures and prompts for calibration: the user's, the model's own training scenes, or a few photographs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lmmprune.compiler.runtime.check_text import check_text
from lmmprune.compiler.runtime.open_picture import load_image, to_rgb
from lmmprune.errors import InputError, require
from lmmprune.limits import parse_json
from lmmprune.models.source import Source

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
_QUESTION = "Describe the image."
# Colour photographs inside scikit-image's wheel: the others are downloaded on demand, which calibration must not do.
_PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "hubble_deep_field.jpg",
)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One picture with a question and, where known, its answer."""

    image: Image.Image
    prompt: str
    answer: str = ""


@dataclass(frozen=True, kw_only=True)
class CalibrationSet:
    """Samples, where they come from, and whether they are anybody's pictures instead of the model's own kind of data.

    Raises:
        InputError: There are no samples.
    """

    samples: Sequence[Sample]
    source: str
    generic: bool

    def __post_init__(self) -> None:
        if not self.samples:
            raise InputError(f"no samples in {self.source}: give --calib with one picture or more, better 32")

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know of ranges that come from these samples, one line each."""
        found = []
        if len(self.samples) == 1:
            found.append("INT8 ranges come from a single sample, others will be clipped: give --calib with 32 or so")
        if self.generic:
            found.append(
                f"INT8 ranges come from {len(self.samples)} {self.source}; give --calib with pictures of your own"
            )
        return tuple(found)

    def digest(self) -> str:
        """Return the SHA-256 of all pixels, prompts and answers in their order, as hexadecimal digits."""
        digest = hashlib.sha256()
        for sample in self.samples:
            image = to_rgb(sample.image)  # as the model will see it
            digest.update(json.dumps([image.size, sample.prompt, sample.answer]).encode())
            digest.update(image.tobytes())
        return digest.hexdigest()


def load_calibration(source: Source, path: Path | None, limit: int, *, option: str = "--calib") -> CalibrationSet:
    """Return at most ``limit`` samples from a directory, a jsonl file, or what fits the model.

    Args:
        source: The model.
        path: The directory or the file; None: what fits the model.
        limit: At least 1.
        option: What the user gave the path with.

    Raises:
        InputError: Nothing usable there, or none asked for.
    """
    if limit < 1:
        raise InputError(f"{limit} calibration samples: expected 1 or more")
    if path is not None:
        samples = _jsonl(path, limit, option) if path.is_file() else _directory(path, limit, option)
        return CalibrationSet(samples=samples, source=path.resolve().name, generic=False)
    own = source.directory and source.directory / "calib" / "calib.jsonl"
    if own and own.is_file():
        return CalibrationSet(
            samples=_jsonl(own, limit, option), source=f"{source.identity.name}'s training scenes", generic=False
        )
    return CalibrationSet(samples=_photographs(limit), source="photographs of scikit-image", generic=True)


def _directory(path: Path, limit: int, option: str) -> list[Sample]:
    if not path.is_dir():
        raise InputError(f"{option} '{path}' doesn't exist: give a directory of pictures or a jsonl file")
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES)
    if not files:
        raise InputError(f"{option} '{path}' holds no pictures ({', '.join(sorted(_SUFFIXES))})")
    return [Sample(image=load_image(file), prompt=_QUESTION) for file in files[:limit]]


def _jsonl(path: Path, limit: int, option: str) -> list[Sample]:
    samples = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{option} '{path}' can't be read as text ({error}): give a directory or a jsonl file"
        ) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise InputError(f"{path}:{number}: expected an object in JSON per line ({error})") from error
        try:
            image, prompt, answer = row["image"], row["prompt"], row.get("answer", "")
            if not all(isinstance(text, str) for text in (image, prompt, answer)):
                raise TypeError
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path}:{number}: expected an object with 'image', 'prompt' and perhaps 'answer', all of them texts"
            ) from error
        for text in (prompt, answer):
            check_text(text, f"{path}:{number}: the text")
        samples.append(Sample(image=load_image(path.parent / image), prompt=prompt, answer=answer))
        if len(samples) == limit:
            break
    if not samples:
        raise InputError(f"{option} '{path}' is empty: give lines with 'image' and 'prompt'")
    return samples


def _photographs(limit: int) -> list[Sample]:
    skimage = require("skimage", "export")
    folder = Path(str(skimage.__file__)).parent / "data"
    found = [folder / name for name in _PHOTOGRAPHS if (folder / name).is_file()]
    if not found:
        raise InputError("no photographs found in scikit-image: give your own with --calib")
    return [Sample(image=load_image(file), prompt=_QUESTION) for file in found[:limit]]
