"""The packages of lmmprune's extras: what each one asks for, and what is installed."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

BASE = "base"
# What a user may install; "dev" and "docs" are for people who change lmmprune.
EXTRAS = (BASE, "export", "cpu", "openvino", "gpu", "rtx", "ray", "triton", "serve", "lmms-eval")
# Two packages that install the same module: either serves who asks for the first, both together break each other.
_TWINS = ("onnxruntime", "onnxruntime-gpu")


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package that an extra asks for; ``installed`` is None where it is missing."""

    name: str
    wanted: str
    installed: str | None

    @property
    def suits(self) -> bool:
        """Whether it is installed, in a version that is wanted."""
        return self.installed is not None and SpecifierSet(self.wanted).contains(self.installed, prereleases=True)


def packages(python: str | None = None) -> dict[str, tuple[Package, ...]]:
    """Return extra -> its packages, as lmmprune's own metadata states them.

    Args:
        python: For this version of Python, such as ``3.10``; None: the one that runs.
    """
    running = {} if python is None else {"python_version": python, "python_full_version": f"{python}.0"}
    asked = [Requirement(line) for line in importlib.metadata.requires("lmmprune") or []]
    found: dict[str, tuple[Package, ...]] = {}
    for extra in EXTRAS:
        rows = [
            Package(name=each.name, wanted=_range(each), installed=_serving(each.name))
            for each in asked
            if _of(each, extra) and (each.marker is None or each.marker.evaluate({**running, "extra": _named(extra)}))
        ]
        found[extra] = tuple(rows)
    return found


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


def _of(requirement: Requirement, extra: str) -> bool:
    """Return whether it is this extra that asks for a package: the base install's markers name none."""
    return ("extra" in str(requirement.marker or "")) == (extra != BASE)


def _named(extra: str) -> str:
    return "" if extra == BASE else extra


def _range(requirement: Requirement) -> str:
    """Return the versions that are wanted, the lower end first."""
    return ",".join(sorted(map(str, requirement.specifier), reverse=True))
