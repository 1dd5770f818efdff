"""Whether this machine has the memory that a builder will take: told before minutes of work, not by the kernel."""

from __future__ import annotations

from pathlib import Path

from lmmprune.compiler import machine
from lmmprune.compiler.bundle import Bundle
from lmmprune.compiler.engines import sources
from lmmprune.errors import TargetError

# Seen in TensorRT-RTX 1.7.1, 128 to 512 MiB of float16 weights: 3.0 times the weights and 80 MiB more (the graph's, the
# builder's and the engine's copy). Believed for TensorRT, whose kernels' scratch memory comes on top.
_COPIES = 3
_FIXED = 256 * 2**20


def builder_bytes(bundle: Bundle, component: str) -> int:
    """Return the host memory in bytes that building a component takes at its peak."""
    files = bundle.manifest.files
    return _COPIES * sum(files[name].bytes for name in sources(bundle, component)) + _FIXED


def check_memory(bundle: Bundle, component: str) -> None:
    """Refuse a build that would not fit into this machine's free memory.

    Raises:
        TargetError: It wouldn't; the message holds both numbers.
    """
    needed, free = builder_bytes(bundle, component), machine.free_memory()
    if free is not None and needed > free:
        gib = 2.0**30
        raise TargetError(
            f"building the {component} of '{Path(bundle.path).name}' takes about {needed / gib:.1f} GiB of memory "
            f"({_COPIES} times its weights), {free / gib:.1f} GiB are free: close other programs, add swap, export "
            "with --int8, or build on a larger machine"
        )
