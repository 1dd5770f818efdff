"""The back ends that are checked: which target each stands for here, and whether this machine can run it at all."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from lmmprune.compiler.backends import load_tensorrt
from lmmprune.compiler.backends.cuda import CudaDevice
from lmmprune.compiler.backends.open_sessions import import_backend
from lmmprune.compiler.build.build import build
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.targets import machine
from lmmprune.compiler.targets.target import Target
from lmmprune.compiler.targets.targets import TARGETS
from lmmprune.errors import LmmpruneError, TargetError, require

# Name of the back end -> its targets, of which the first that the installed version serves is taken. "cpu" is no GPU
# check: it runs the same code where there is none.
BACKENDS = {
    "ort": ("ort-cuda",),
    "rtx": ("tensorrt-rtx",),
    "trt": tuple(name for name, target in TARGETS.items() if target.backend == "tensorrt"),
    "cpu": ("ort-cpu",),
}


def usable(backend: str) -> Target:
    """Return the target that stands for a back end here.

    Raises:
        LmmpruneError: This machine can't run it; the message says what is missing.
    """
    refused: LmmpruneError | None = None
    for name in BACKENDS[backend]:
        target = TARGETS[name]
        try:
            if target.compiled:
                load_tensorrt.load(target)
                CudaDevice(target.extra)
            else:
                provider = target.provider
                found = require("onnxruntime", target.extra).get_available_providers()
                if provider not in found:
                    raise TargetError(f"onnxruntime has {', '.join(found)}, not {provider}: install onnxruntime-gpu")
                if backend != "cpu" and not machine.gpus():
                    raise TargetError("the driver's tool nvidia-smi shows no GPU here")
            return target
        except LmmpruneError as error:
            refused = error
    assert refused is not None
    raise refused


def bundle_of(output: Path, **request: Any) -> Bundle:
    """Return the bundle that is there, or export what ``request`` (fields of ``Request``) says.

    Raises:
        LmmpruneError: It can't be exported here, for one because this machine lacks what that takes.
    """
    if not output.is_dir():
        require("onnx_ir", "export")
        from lmmprune.compiler.export.export import export
        from lmmprune.compiler.export.request import Request

        export(Request(output=output, **request), traced=trace())
    return Bundle.open(output)


@functools.cache
def trace() -> Any:
    """Return what the variants of a model share of their export."""
    from lmmprune.compiler.export.trace import shared_trace

    return shared_trace()


def built(bundle: Bundle, target: Target) -> dict[str, Any]:
    """Build a bundle's engines where the target has any; return what is known of them."""
    if not target.compiled:
        return {}
    return {
        one.record.component: {
            "bytes": one.record.bytes,
            "seconds": one.record.seconds,
            "decomposed_attention": one.record.decomposed_attention,
            "layers_by_type": dict(one.record.layers) if one.record.layers is not None else None,
            "of_float16": one.record.float16_ratio,
        }
        for one in build(bundle.path, target.name)
    }


def versions(target: Target) -> dict[str, str]:
    """Return the module that runs a target and its version."""
    return dict([import_backend(target.name)])
