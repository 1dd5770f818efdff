"""Facts about this machine: processor, memory, disk, GPUs. Nothing here fails; what can't be found out is None."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

# Instruction sets that decide how fast ONNX Runtime's INT8 and half-precision kernels are.
_CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm")
_JETSONS = (("Orin", "sm87"), ("Thor", "sm110"))


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """An NVIDIA GPU: ``arch`` as ``sm89``, memory in bytes."""

    name: str
    arch: str | None
    driver: str | None
    memory: int | None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the machine has: sizes in bytes."""

    system: str
    python: str
    processor: str
    cores: int
    cpu_flags: tuple[str, ...]
    memory: int
    disk_free: int
    gpus: tuple[Gpu, ...]


def detect_machine() -> Machine:
    """Return the facts of this machine."""
    name, flags = _cpu()
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        python=".".join(str(part) for part in sys.version_info[:3]),
        processor=name,
        cores=cores(),
        cpu_flags=tuple(flag for flag in _CPU_FLAGS if flag in flags),
        memory=_memory(),
        disk_free=shutil.disk_usage(Path.cwd()).free,
        gpus=gpus(),
    )


def gpus() -> tuple[Gpu, ...]:
    """Return the NVIDIA GPUs that the driver shows, or the one of a Jetson board."""
    return tuple(_gpu(line) for line in ask_driver().splitlines() if line.count(",") >= 3) or _jetson()


@functools.cache
def ask_driver() -> str:
    """Return a line per GPU as nvidia-smi writes it; it is started once per process, as it takes up to a second."""
    fields = "name,compute_cap,driver_version,memory.total"
    try:
        return subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _gpu(line: str) -> Gpu:
    name, capability, driver, memory = (part.strip() for part in line.rsplit(",", 3))
    arch = f"sm{capability.replace('.', '')}" if capability.replace(".", "").isdigit() else None
    return Gpu(
        name=name,
        arch=arch or _jetson_arch(name),
        driver=driver if driver[:1].isdigit() else None,
        memory=int(memory) * 2**20 if memory.isdigit() else None,
    )


def _jetson() -> tuple[Gpu, ...]:
    try:
        board = Path("/proc/device-tree/model").read_text(encoding="utf-8").strip("\0 \n")
    except (OSError, UnicodeDecodeError):
        return ()
    arch = _jetson_arch(board)
    return (Gpu(name=board, arch=arch, driver=None, memory=_memory()),) if arch else ()


def _jetson_arch(name: str) -> str | None:
    return next((arch for board, arch in _JETSONS if board in name), None)


def _cpu() -> tuple[str, frozenset[str]]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine(), frozenset()
    rows: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            rows.setdefault(key.strip(), value.strip())
    flags = rows.get("flags") or rows.get("Features") or ""
    return rows.get("model name") or platform.machine(), frozenset(flags.split())


def cores() -> int:
    """Return the processors that this process may use."""
    # A container or taskset may allow fewer than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> int:
    return int(psutil.virtual_memory().total)


def free_memory() -> int:
    """Return the bytes that programs may still take, swap included."""
    return int(psutil.virtual_memory().available + psutil.swap_memory().free)
