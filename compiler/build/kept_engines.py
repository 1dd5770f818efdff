"""Engines that are there already: which are of no use any more, and which mustn't be replaced unasked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lmmprune.compiler.build.options import BuildOptions
from lmmprune.compiler.build.profiles import Profile
from lmmprune.compiler.bundle import engines
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.bundle.engines import EngineRecord
from lmmprune.errors import InputError


def check_kept(
    bundle: Bundle,
    folder: Path,
    component: str,
    trt: object,
    profiles: Mapping[str, Sequence[Profile]],
    options: BuildOptions,
) -> None:
    """Refuse to replace an engine that still runs, but isn't the one that is asked for.

    Args:
        bundle: Its bundle.
        folder: The engines of a target and an architecture.
        component: Which of them.
        trt: The builder's module.
        profiles: What is asked for, by component.
        options: What is asked of the builder.

    Raises:
        InputError: It would be replaced.
    """
    old = engines.read_records(folder).get(component)
    if old is None or useless(bundle, old, folder, trt):
        return
    shapes, asked = old.profiles != ranges_of(profiles[component]), options.recorded()
    if not shapes and old.options == asked:
        return
    was = "for other shapes" if shapes else f"with other options ({_words(old.options)}; asked: {_words(asked)})"
    raise InputError(f"'{folder / old.file}' was built {was} and still runs: --force to replace it")


def _words(options: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" if value is not True else name for name, value in options.items()) or "none"


def useless(bundle: Bundle, record: EngineRecord, folder: Path, trt: object) -> str | None:
    """Return why an engine can't run any more, None if it can."""
    if reason := record.stale(bundle):
        return reason
    version = getattr(trt, "__version__", "")
    if record.version != version:
        return f"built by version {record.version}, here is {version}"
    return None if engines.is_whole(folder, record) else "its file is missing or damaged"


def ranges_of(profiles: Sequence[Profile]) -> dict[str, dict[str, list[list[int]]]]:
    """Return profiles as an engine's record holds them."""
    return {
        profile.name: {name: [list(shape) for shape in ranges] for name, ranges in profile.shapes.items()}
        for profile in profiles
    }
