"""Whether this machine has the memory that a builder will take: told before minutes of work, not by the kernel."""

from __future__ import annotations

from lmmprune.compiler.build.inspect_engine import graph_weights
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.bundle.engines import sources
from lmmprune.compiler.targets import machine
from lmmprune.units import GIB, MIB

# Seen in TensorRT-RTX 1.7.1, 128 to 512 MiB of float16 weights: 3.0 times the weights and 80 MiB more (the graph's, the
# builder's and the engine's copy). Believed for TensorRT, whose kernels' scratch memory comes on top.
_COPIES = 3
_FIXED = 256 * MIB


def builder_bytes(bundle: Bundle, component: str) -> int:
    """Return the host memory in bytes that building a component takes at its peak."""
    weights = graph_weights(bundle.file(bundle.manifest.graphs[component].file))
    if weights is not None and weights.bytes:
        return _COPIES * sum(weights.bytes.values()) + _FIXED
    return _COPIES * sum(bundle.manifest.files[name].bytes for name in sources(bundle, component)) + _FIXED


def most_builder_bytes(bundle: Bundle) -> int:
    """Return what building the bundle takes at its peak: components are built one after the other."""
    return max(builder_bytes(bundle, component) for component in bundle.manifest.graphs)


def lacking_memory(bundle: Bundle, component: str) -> str | None:
    """Return why a build would not fit into this machine's free memory, with both numbers; None if it does."""
    needed, free = builder_bytes(bundle, component), machine.free_memory()
    if needed <= free:
        return None
    bits = bundle.manifest.precision.smaller
    smaller = "" if bits is None else f"export with --int{bits}, "
    return (
        f"building the {component} of '{bundle.path.name}' takes about {needed / GIB:.1f} GiB of memory ({_COPIES} "
        f"times its weights), {free / GIB:.1f} GiB are free: close other programs, add swap, {smaller}or build on a "
        "larger machine"
    )
