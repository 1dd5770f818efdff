"""Measure what one answer of a bundle needs: the peak memory of a fresh process that loads it and answers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from lmmprune.compiler.bundle import seal
from lmmprune.errors import BundleError


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Host memory of a process in bytes: the peak, and what it had before it loaded the bundle.

    ``device`` is what the GPU had less of after the answer than before, where engines run; None elsewhere.
    """

    peak: int
    base: int
    device: int | None = None


def measure_memory(bundle: Path, image: Path | Sequence[Path], prompt: str, *, threads: int | None = None) -> Memory:
    """Answer with four tokens in a process of its own and return its peak resident memory.

    A process of its own, because in a shared one the memory that earlier variants freed is used again, and the first
    one pays for the libraries.

    Args:
        bundle: Directory of the bundle.
        image: The picture, or several.
        prompt: The question.
        threads: As for ``Runtime``.

    Raises:
        BundleError: The process failed.
    """
    images = json.dumps([str(one) for one in ([image] if isinstance(image, Path) else image)])
    arguments = [str(bundle), images, prompt, str(threads or 0), "unsealed" if seal.allowed() else "sealed"]
    done = subprocess.run(
        [sys.executable, "-m", "lmmprune.compiler.measure.memory", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BundleError(f"measuring the memory of '{bundle}' failed (exit code {done.returncode}): {last}")
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def peak_bytes() -> int:
    """Return the peak resident memory of this process in bytes."""
    if sys.platform == "linux":
        # Not ru_maxrss: on Linux that one starts at the size of the process that started us.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _main(bundle: str, images: str, prompt: str, threads: str, sealed: str) -> None:
    from lmmprune.compiler.backends.cuda import CudaDevice
    from lmmprune.compiler.backends.open_sessions import import_backend
    from lmmprune.compiler.bundle.bundle import Bundle
    from lmmprune.compiler.measure.seen import load_seen
    from lmmprune.compiler.runtime.runtime import Runtime
    from lmmprune.compiler.targets.targets import TARGETS

    with seal.unsealed(sealed == "unsealed"):
        opened = Bundle.open(bundle)
    import_backend(opened.manifest.target)
    pictures = load_seen(opened.manifest, [Path(image) for image in json.loads(images)])
    known = TARGETS.get(opened.manifest.target)
    device = CudaDevice(known.extra) if known is not None and known.compiled else None
    free = device.memory()[0] if device is not None else 0
    base = peak_bytes()
    runtime = Runtime(opened, threads=int(threads) or None)
    _ = runtime.answer(pictures, prompt, 4, stop_at_eos=False).text
    used = free - device.memory()[0] if device is not None else None
    print(json.dumps({"peak": peak_bytes(), "base": base, "device": used}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
