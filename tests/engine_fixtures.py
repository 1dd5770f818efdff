"""Bundles whose engines run on the fake GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from fake_cuda import FakeCudart
from fake_trt import FakeTrt, make_plan

from lmmprune.compiler.backends import cuda, load_tensorrt, open_sessions
from lmmprune.compiler.build.profiles import decoder_profiles
from lmmprune.compiler.bundle import engines
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.targets.targets import resolve
from lmmprune.errors import LmmpruneError, require

RTX = resolve("tensorrt-rtx")


@contextmanager
def fake_gpu(cuda_module: FakeCudart | None = None, trt: FakeTrt | None = None) -> Iterator[FakeTrt]:
    """Put the fake GPU and its TensorRT in the place of the real ones."""
    cuda_module = cuda_module or FakeCudart()
    trt = trt or FakeTrt(cuda_module)

    def find(module: str, extra: str) -> Any:
        return cuda_module if module == "cuda.bindings.runtime" else require(module, extra)

    with (
        patch.object(cuda, "require", find),
        patch.object(open_sessions, "require", find),
        patch.object(load_tensorrt, "load", lambda _: trt),
    ):
        yield trt


def add_engines(
    bundle: Bundle,
    *,
    arch: str = "sm89",
    version: str = "1.7.1.116",
    target: str = "tensorrt-rtx",
    max_prompt: int | None = None,
    options: dict[str, Any] | None = None,
    **plan: Any,
) -> Path:
    """Write engine files for the fake TensorRT beside a bundle's graphs; return their directory."""
    folder = engines.directory(bundle, target, arch)
    for component, graph in bundle.manifest.graphs.items():
        profiles: dict[str, Any] = {}
        if component == "decoder":
            for profile in decoder_profiles(bundle.manifest, resolve(target), max_prompt):
                profiles[profile.name] = {name: [list(s) for s in shapes] for name, shapes in profile.shapes.items()}
        record = engines.EngineRecord(
            component=component,
            target=target,
            arch=arch,
            file=f"{component}.engine",
            bytes=0,
            sha256="",
            source=engines.sources(bundle, component),
            builder="tensorrt_rtx",
            version=version,
            seconds=0.0,
            dtype=bundle.manifest.precision.dtype,
            int8=None,
            profiles=profiles,
            decomposed_attention=0,
            options=options or {},
        )
        alias = bundle.manifest.cache.in_place if component == "decoder" else {}
        plan = {"alias": alias, **plan}
        engines.write_engine(folder, make_plan(bundle.file(graph.file).resolve(), profiles, **plan), record)
    return folder


def on_the_cpu(bundle: Bundle) -> Bundle:
    """Return the same bundle for ONNX Runtime."""
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, target="ort-cpu"))


def one_line(error: LmmpruneError) -> str:
    """Return the message of an error, which must be one line."""
    assert "\n" not in str(error)
    return str(error)
