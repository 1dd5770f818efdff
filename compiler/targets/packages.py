"""The packages of lmmprune's extras: what each one asks for, and what is installed."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from dataclasses import dataclass

BASE = "base"
# What a user may install; "dev" and "docs" are for people who change lmmprune.
EXTRAS = (BASE, "export", "cpu", "gpu", "rtx", "ray", "triton")
# Two packages that install the same module: either serves who asks for the first, both together break each other.
_TWINS = ("onnxruntime", "onnxruntime-gpu")

_REQUIREMENT = re.compile(
    r"^(?P<name>[A-Za-z0-9._-]+)\s*(?:\[[^]]*\])?\s*(?P<wanted>[^;]*?)\s*"
    r"(?:;\s*(?:python_version\s*<\s*['\"](?P<below>[\d.]+)['\"])?.*?(?:extra\s*==\s*['\"](?P<extra>\w+)['\"].*)?)?$"
)


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package that an extra asks for; ``installed`` is None where it is missing."""

    name: str
    wanted: str
    installed: str | None

    @property
    def suits(self) -> bool:
        """Whether it is installed, and new enough."""
        if self.installed is None:
            return False
        lowest = re.search(r">=\s*([\d.]+)", self.wanted)
        return lowest is None or _key(self.installed) >= _key(lowest[1])


def packages(python: str | None = None) -> dict[str, tuple[Package, ...]]:
    """Return extra -> its packages, as lmmprune's own metadata states them.

    Args:
        python: For this version of Python; None: the one that runs.
    """
    running = _key(python or platform.python_version())
    found: dict[str, list[Package]] = {extra: [] for extra in EXTRAS}
    for line in importlib.metadata.requires("lmmprune") or []:
        match = _REQUIREMENT.match(line)
        if match is None or (extra := match["extra"] or BASE) not in found:
            continue
        if match["below"] and running >= _key(match["below"]):
            continue
        name, wanted = match["name"], match["wanted"]
        found[extra].append(Package(name=name, wanted=wanted, installed=_serving(name)))
    return {extra: tuple(rows) for extra, rows in found.items()}


def version(name: str) -> str | None:
    """Return the installed version of a package, None if it isn't installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def install_command(extra: str) -> str:
    """Return the command that installs an extra."""
    return "pip install lmmprune" if extra == BASE else f"pip install 'lmmprune[{extra}]'"


def twins() -> tuple[str, ...]:
    """Return the packages that overwrite each other's files, if more than one of them is installed."""
    both = tuple(name for name in _TWINS if version(name) is not None)
    return both if len(both) > 1 else ()


def _serving(name: str) -> str | None:
    return version(name) or (version(_TWINS[1]) if name == _TWINS[0] else None)


def _key(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.split("+")[0])[:3])
