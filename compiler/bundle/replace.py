"""What may be replaced where a command writes: one rule for all of them.

A new path and an empty directory are written to. Whatever else is there is refused in words that say what it is;
``--force`` replaces what the same kind of command wrote. What lmmprune didn't write is nobody's to remove, ``--force``
or not: a mistyped ``-o ~`` must not cost a home.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lmmprune.compiler.bundle.bundle import ENGINES
from lmmprune.compiler.bundle.interface import SELECTION
from lmmprune.compiler.bundle.manifest import FILENAME
from lmmprune.errors import InputError
from lmmprune.limits import read_json

BUNDLE, PLAN, BOARD = "bundle", "plan", "folder for a board"
REPOSITORY, STUDY, TUNING = "model repository", "study", "tuning"
"""Kinds of directories that lmmprune writes."""

_SUMS = "SHA256SUMS"
# What a plan's script adds to its folder, and what a study holds beside its record.
_MADE_BY_SCRIPT = (ENGINES, "logs", "result.json")
_CHARTS = ("retention", "speed", "front", "interaction_accuracy", "interaction_speed")
_MADE_BY_STUDY = (
    *("study.json", ".lock", "cells", "bundles", "methods", "timing", "report.html", "results.csv"),
    *(f"{name}.png" for name in _CHARTS),
)
_MADE_BY_TUNE = (
    *("tune.json", ".lock", "cells", "bundles", "answers", "schedules"),
    *("report.html", "front.csv", "front.json", "front.png"),
)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What lmmprune wrote into a directory.

    Attributes:
        kind: One of the kinds above.
        text: What it is, as in ``a bundle of llava-1.5-7b with 2 engines``.
        foreign: A file in it that lmmprune didn't write.
    """

    kind: str
    text: str
    foreign: str | None


def check_directory(path: Path, kind: str, *, force: bool, option: str = "") -> None:
    """Refuse a directory to be written whose content would be lost.

    Args:
        path: The directory.
        kind: What shall be written.
        force: Whether what lies there may go.
        option: The option that names it, where a message must tell it from others.

    Raises:
        InputError: It is a file, or holds something, which isn't of the same kind or may not go.
    """
    name = f"{option} '{path}'".lstrip()
    try:
        if not path.is_dir():
            if path.exists():
                raise InputError(f"{name} is a file: give a directory for the {kind}")
            return
        if not any(path.iterdir()):
            return
        found = what_is_at(path)
    except OSError as error:
        raise InputError(f"{name} can't be looked into ({error.strerror}): give another directory") from error
    if found is None or found.kind != kind:
        holds = "isn't empty and isn't" if found is None else f"holds {found.text}, not"
        never = f", and --force replaces a {kind} only" if force else ""
        raise InputError(f"{name} {holds} a {kind}{never}: give another directory, or move away what is there")
    if found.foreign is not None:
        raise InputError(f"{name} holds '{found.foreign}', which isn't part of the {kind} there: move it away first")
    if not force:
        raise InputError(f"{name} holds {found.text}: give another directory, or --force to replace it")


def check_file(path: Path, *, force: bool, option: str = "", only_files: bool = False) -> None:
    """Refuse a file to be written whose content would be lost.

    Args:
        path: The file.
        force: Whether what lies there may go.
        option: The option that names it, where a message must tell it from others.
        only_files: Whether pipes and devices, which are else written to as they are, are refused.

    Raises:
        InputError: It is a directory, or there and may not go, or no file.
    """
    name = f"{option} '{path}'".lstrip()
    if not path.name:
        raise InputError(f"{name} names no file: give the name of the file to write")
    if path.is_dir():
        raise InputError(f"{name} is a directory: give the name of the file to write")
    if only_files and path.exists() and not path.is_file():
        raise InputError(f"{name} is a device or a pipe: give the name of a file")
    if path.is_file() and not force:
        raise InputError(f"{name} exists: give another name, or --force to replace it")


def check_apart(output: Path, source: Path, *, option: str = "-o") -> None:
    """Refuse to write over what is read, or into it.

    Raises:
        InputError: One path is the other, or lies inside of it.
    """
    one, other = output.resolve(), source.resolve()
    if one == other or other in one.parents or one in other.parents:
        raise InputError(
            f"{option} {shlex.quote(str(output))} and '{source}', which is read, lie inside of each other: "
            "give another directory"
        )


def what_is_at(path: Path) -> Found | None:
    """Return what lmmprune wrote into a directory, None if it isn't anything of its own."""
    for finder in (_plan, _bundle, _repository, _study, _tuning):
        if (found := finder(path)) is not None:
            return found
    return None


def _bundle(path: Path) -> Found | None:
    # An old format is a bundle too.
    raw = _read(path / FILENAME)
    if not {"format", "vision", "decoder", "files"} <= raw.keys() or not isinstance(raw["files"], dict):
        return None
    engines = sum(1 for _ in (path / ENGINES).glob("*/*.engine"))
    built = f" with {engines} engine{'s' * (engines > 1)}" if engines else ""
    return Found(
        kind=BUNDLE,
        text=f"a bundle of {raw.get('model', 'a model')}{built}",
        foreign=_foreign(path, {*raw["files"], FILENAME}, (ENGINES,)),
    )


def _plan(path: Path) -> Found | None:
    raw = _read(path / "plan.json")
    if not {"format", "target", "variants"} <= raw.keys() or not (path / _SUMS).is_file():
        return None
    names = ", ".join(str(variant.get("name")) for variant in raw["variants"])
    lines = (path / _SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    own = {_SUMS, *(line[66:] for line in lines)}
    engines = [f"{variant.get('name')}/{ENGINES}" for variant in raw["variants"]]
    measured = " and its result.json" if (path / "result.json").is_file() else ""
    board = (path / "memory.json").is_file()
    return Found(
        kind=BOARD if board else PLAN,
        text=f"{f'a {BOARD} with' if board else f'a {PLAN} of'} {names}{measured}",
        foreign=_foreign(path, own, (*_MADE_BY_SCRIPT, *engines)),
    )


def _repository(path: Path) -> Found | None:
    manifests = [file for file in path.glob(f"*/1/{FILENAME}") if (file.parents[1] / "config.pbtxt").is_file()]
    if not manifests or not (path / "README.md").is_file():
        return None
    raw = _read(manifests[0])
    parts = {"preprocess", "vision", "decoder", SELECTION, manifests[0].parents[1].name}
    # Before format 3 they were called heads.
    parts |= {f"{name}_{bucket.get('tokens')}" for bucket in raw.get("buckets") or () for name in ("bucket", "head")}
    return Found(
        kind=REPOSITORY,
        text=f"a {REPOSITORY} of {raw.get('model', 'a model')}, whose configuration may have been edited",
        foreign=_foreign(path, {"README.md", "client.py", "build_engines.sh"}, sorted(parts)),
    )


def _study(path: Path) -> Found | None:
    raw = _read(path / "study.json")
    if not {"format", "identity"} <= raw.keys():
        return None
    cells = sum(1 for _ in (path / "cells").glob("*/result.json"))
    model = raw["identity"].get("model", "a model") if isinstance(raw["identity"], dict) else "a model"
    return Found(
        kind=STUDY,
        text=f"a study of {model} with {cells} finished variant{'s' * (cells != 1)}",
        foreign=_foreign(path, set(), _MADE_BY_STUDY),
    )


def _tuning(path: Path) -> Found | None:
    raw = _read(path / "tune.json")
    if not {"format", "identity"} <= raw.keys():
        return None
    model = raw["identity"].get("model", "a model") if isinstance(raw["identity"], dict) else "a model"
    return Found(kind=TUNING, text=f"a tuning of {model}", foreign=_foreign(path, set(), _MADE_BY_TUNE))


def _foreign(path: Path, files: set[str], below: Iterable[str]) -> str | None:
    """Return the first file of a directory that is neither listed nor below one of some paths."""
    prefixes = [PurePosixPath(name).parts for name in below]
    for name in _names(path):
        parts = PurePosixPath(name).parts
        left_over = name.startswith(".") and name.endswith(".tmp")  # by a process that was killed
        if name not in files and not left_over and not any(parts[: len(prefix)] == prefix for prefix in prefixes):
            return name
    return None


def _names(path: Path) -> Iterator[str]:
    found = (file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_symlink() or file.is_file())
    yield from sorted(found)


def _read(path: Path) -> dict[str, Any]:
    """Return a JSON object, an empty one where there is none."""
    try:
        raw = read_json(path)
    except (OSError, ValueError):
        return {}
    return raw if isinstance(raw, dict) else {}
