"""Find out what this machine can export, build and run, and what to install for the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmmprune.compiler.backends import load_tensorrt
from lmmprune.compiler.backends.cuda import CudaDevice
from lmmprune.compiler.targets.machine import Gpu, Machine, detect_machine
from lmmprune.compiler.targets.packages import Package, install_command, packages, twins
from lmmprune.compiler.targets.target import Target
from lmmprune.compiler.targets.targets import TARGETS
from lmmprune.errors import LmmpruneError, MissingExtraError, require
from lmmprune.units import GIB

_FAST_INT8 = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})
# Writing engines, weights and temporary copies of a small model; a 7B model needs about 15 GB.
_LITTLE_DISK = 2 * GIB


@dataclass(frozen=True, kw_only=True)
class Ability:
    """Whether something can be done here; ``why`` says what is missing, ``fix`` the command that helps."""

    can: bool
    why: str = ""
    fix: str = ""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What can be done here for one target."""

    target: str
    export: Ability
    build: Ability
    run: Ability


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """All that ``doctor`` found."""

    machine: Machine
    packages: Mapping[str, tuple[Package, ...]]
    verdicts: tuple[Verdict, ...]
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the diagnosis as plain JSON types."""
        return dataclasses.asdict(self)


def diagnose() -> Diagnosis:
    """Look at the machine and at what is installed; nothing is changed."""
    machine, found = detect_machine(), packages()
    verdicts = tuple(
        Verdict(
            target=target.name,
            export=_exports(found),
            build=_builds(target, machine),
            run=_runs(target, machine),
        )
        for target in TARGETS.values()
    )
    return Diagnosis(machine=machine, packages=found, verdicts=verdicts, warnings=tuple(_warnings(machine, found)))


def missing(found: Mapping[str, tuple[Package, ...]], extra: str) -> list[str]:
    """Return what an extra lacks: ``torch``, or ``torch 2.1 (>=2.9)`` where it is too old."""
    return [
        package.name if package.installed is None else f"{package.name} {package.installed} ({package.wanted})"
        for package in found[extra]
        if not package.suits
    ]


def _exports(found: Mapping[str, tuple[Package, ...]]) -> Ability:
    lacking = missing(found, "export")
    if lacking:
        return Ability(can=False, why=f"missing: {', '.join(lacking)}", fix=install_command("export"))
    return Ability(can=True)


def _builds(target: Target, machine: Machine) -> Ability:
    if not target.compiled:
        return Ability(can=True, why="no build needed")
    try:
        load_tensorrt.load(target)
    except LmmpruneError as error:
        return Ability(can=False, why=_short(error), fix=install_command(target.extra))
    if target.architectures:
        return Ability(can=True, why=f"for {' '.join(target.architectures)}")
    if not machine.gpus:
        return Ability(can=False, why="no NVIDIA GPU here: build on the machine that will run the engine")
    return Ability(can=True, why=f"for {_archs(machine.gpus)}")


def _runs(target: Target, machine: Machine) -> Ability:
    if target.compiled:
        try:
            load_tensorrt.load(target)
            return Ability(can=True, why=CudaDevice(target.extra).arch)
        except LmmpruneError as error:
            fix = install_command(target.extra) if isinstance(error, MissingExtraError) else ""
            return Ability(can=False, why=_short(error), fix=fix)
    try:
        module = require(target.backend, target.extra)
    except LmmpruneError as error:
        return Ability(can=False, why=_short(error), fix=install_command(target.extra))
    except ImportError as error:
        return Ability(can=False, why=f"{target.backend} doesn't load ({error})", fix=install_command(target.extra))
    if target.device == "cpu":
        return Ability(can=True)
    if target.provider not in module.get_available_providers():
        return Ability(can=False, why="onnxruntime has no CUDA provider", fix=install_command(target.extra))
    if not machine.gpus:
        return Ability(can=False, why="no NVIDIA GPU here")
    return Ability(can=True, why=_archs(machine.gpus))


def _warnings(machine: Machine, found: Mapping[str, tuple[Package, ...]]) -> list[str]:
    warnings = []
    if both := twins():
        keep = both[1] if machine.gpus else both[0]
        warnings.append(
            f"{' and '.join(both)} are both installed and overwrite each other's files: "
            f"pip uninstall -y {' '.join(both)} && pip install {keep}"
        )
    if lacking := missing(found, "base"):
        warnings.append(f"the run-time itself lacks {', '.join(lacking)}: {install_command('base')}")
    if not _FAST_INT8 & set(machine.cpu_flags):
        warnings.append("this processor has no 8-bit dot products (VNNI): INT8 on ort-cpu saves memory but little time")
    if machine.disk_free < _LITTLE_DISK:
        warnings.append(f"only {machine.disk_free / GIB:.1f} GiB of disk are free here: a 7B model needs about 15 GB")
    return warnings


def _archs(gpus: tuple[Gpu, ...]) -> str:
    return " ".join(dict.fromkeys(gpu.arch or gpu.name for gpu in gpus))


def _short(error: LmmpruneError) -> str:
    """Return an error's finding; what to do about it stands in ``fix``."""
    return str(error).split(": pip install")[0]
