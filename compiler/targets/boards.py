"""NVIDIA's boards as data: what each JetPack carries, and how much memory there is. Source: NVIDIA's pages (doc)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lmmprune.errors import TargetError, suggestion
from lmmprune.units import GIB


@dataclass(frozen=True, kw_only=True)
class JetPack:
    """The software of a board.

    Attributes:
        release: JetPack's version.
        cuda: CUDA's version.
        python: Version of the system's Python, which TensorRT's module is built for.
    """

    release: str
    cuda: str
    python: str


@dataclass(frozen=True, kw_only=True)
class Board:
    """A board that is sold: memory in bytes, shared by processor and GPU."""

    name: str
    arch: str
    memory: int


# Alias of a target (see targets.py) -> its JetPack.
JETPACKS: Mapping[str, JetPack] = {
    "jetson-orin-jp6": JetPack(release="6.2", cuda="12.6", python="3.10"),
    "jetson-thor-jp7.1": JetPack(release="7.1", cuda="13.0", python="3.12"),
    "jetson-orin-jp7.2": JetPack(release="7.2", cuda="13.2", python="3.12"),
    "jetson-thor-jp7.2": JetPack(release="7.2", cuda="13.2", python="3.12"),
    "jetson-orin-jp7": JetPack(release="7.2", cuda="13.2", python="3.12"),
    "jetson-thor-jp7": JetPack(release="7.2", cuda="13.2", python="3.12"),
}
BOARDS = (
    Board(name="Orin Nano 4GB", arch="sm87", memory=4 * GIB),
    Board(name="Orin Nano 8GB", arch="sm87", memory=8 * GIB),
    Board(name="Orin NX 8GB", arch="sm87", memory=8 * GIB),
    Board(name="Orin NX 16GB", arch="sm87", memory=16 * GIB),
    Board(name="AGX Orin 32GB", arch="sm87", memory=32 * GIB),
    Board(name="AGX Orin 64GB", arch="sm87", memory=64 * GIB),
    Board(name="Thor T4000 64GB", arch="sm110", memory=64 * GIB),
    Board(name="AGX Thor 128GB", arch="sm110", memory=128 * GIB),
)


def jetpack(alias: str) -> JetPack:
    """Return the JetPack of a board's alias.

    Raises:
        TargetError: No board has that name.
    """
    if alias not in JETPACKS:
        raise TargetError(f"no board '{alias}'{suggestion(alias, JETPACKS)}")
    return JETPACKS[alias]
