"""What decides a cell's result besides the cell: as it is asked for, and as a record to compare two runs by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmmprune.compiler.data.questions import Question
from lmmprune.compiler.targets.packages import version
from lmmprune.version import __version__

# Packages whose version may change a graph, a weight or an answer.
_TOOLS = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy", "pillow", "tokenizers")
# Checkpoints of gigabytes are told apart by their sizes and by this much of their beginning and end.
_WHOLE = 64 * 2**20
_PIECE = 2**20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all cells share.

    Attributes:
        model: Alias, hub id, or absolute local directory.
        data: ``tiny-llava``, or the absolute path of a JSON Lines file or of a folder of pictures, as ``compare`` takes
            it.
        prompts: What is asked about every picture of a folder.
        limit: Only the first so many questions.
        max_new_tokens: Answers are cut there.
        target: Where it will run.
        calibration: Pictures for INT8 ranges; None takes what fits the model.
        calibration_samples: Samples at most.
    """

    model: str
    data: str
    limit: int | None
    max_new_tokens: int
    target: str
    calibration: Path | None
    calibration_samples: int
    prompts: tuple[str, ...] = ()


def identity(settings: Settings, checkpoint: Path | None, questions: Sequence[Question]) -> dict[str, str]:
    """Return what must be equal for a finished cell to be used again; contents count, not their paths."""
    facts: dict[str, Any] = {
        "model": settings.model,
        "checkpoint": _files_hash(checkpoint, ("*.json", "*.jinja", "*.safetensors")) if checkpoint else "none",
        "questions": len(questions),
        "data": _data_hash(questions),
        "max-new-tokens": settings.max_new_tokens,
        "target": settings.target,
        "calib": _calibration(settings.calibration),
        "calib-samples": settings.calibration_samples,
        "lmmprune": __version__,
    } | {name: version(name) for name in _TOOLS}
    return {name: str(value) for name, value in facts.items()}


def differences(there: Mapping[str, str], asked: Mapping[str, str]) -> Iterator[str]:
    """Yield what differs between two identities, in words."""
    for name in dict.fromkeys((*there, *asked)):
        if there.get(name) != asked.get(name):
            yield f"{name} (there {_short(there.get(name))}, asked {_short(asked.get(name))})"


def _short(value: str | None) -> str:
    return "-" if value is None else value if len(value) < 64 else f"{value[:12]}.."


def _data_hash(questions: Sequence[Question]) -> str:
    total = hashlib.sha256()
    seen: dict[str, bytes] = {}
    for question in questions:
        if question.picture not in seen:
            image = question.load().convert("RGB")
            seen[question.picture] = hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()
        total.update(seen[question.picture])
        total.update(repr((question.prompt, question.answers)).encode())
    return total.hexdigest()


def _calibration(path: Path | None) -> str:
    if path is None:
        return "the model's own"
    return _files_hash(path, ("*",)) if path.is_dir() else _file_hash(path)


def _files_hash(folder: Path, patterns: Sequence[str]) -> str:
    total = hashlib.sha256()
    for file in sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}):
        total.update(f"{file.name} {_file_hash(file)}\n".encode())
    return total.hexdigest()


def _file_hash(file: Path) -> str:
    size = file.stat().st_size
    total = hashlib.sha256(str(size).encode())
    with file.open("rb") as stream:
        if size <= _WHOLE:
            total.update(stream.read())
        else:
            total.update(stream.read(_PIECE))
            stream.seek(-_PIECE, 2)
            total.update(stream.read())
    return total.hexdigest()
