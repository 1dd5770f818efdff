"""Load an engine file: what it takes and gives, or one line about why it can't be loaded."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from lmmprune.compiler.backends.numpy_types import numpy_type
from lmmprune.compiler.backends.trt_log import explain, make_log
from lmmprune.compiler.backends.trt_start import start
from lmmprune.errors import TargetError

Shape = tuple[int, ...]

# TensorRT's names; smaller types have none in NumPy.
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}


@dataclass(frozen=True, kw_only=True)
class Binding:
    """One input or output.

    ``shape`` has -1 where it varies; ``alias`` names the input whose memory an output shares.
    """

    name: str
    dtype: np.dtype[Any]
    shape: Shape
    alias: str | None = None


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """One optimisation profile: input -> smallest and largest shape."""

    index: int
    name: str
    shapes: Mapping[str, tuple[Shape, Shape]]

    def takes(self, shapes: Mapping[str, Shape]) -> bool:
        """Say whether these shapes lie in it."""
        # Once per step for every layer's cache: plain loops take half the time of generators.
        for name, shape in shapes.items():
            low, high = self.shapes[name]
            if len(shape) != len(low):
                return False
            for least, size, most in zip(low, shape, high, strict=True):
                if not least <= size <= most:
                    return False
        return True


@dataclass(frozen=True, kw_only=True)
class LoadedEngine:
    """An engine in the GPU's memory.

    Attributes:
        path: Its file.
        rebuild: The command that builds it again.
        inputs: By name.
        outputs: By name.
        profiles: In the engine's order.
        scratch: Bytes of memory for intermediate values that one of its contexts needs.
        module: ``tensorrt`` or ``tensorrt_rtx``.
        handle: TensorRT's engine.
        log: Its messages.
        runtime: TensorRT's runtime, which must live as long as the engine.
    """

    path: Path
    rebuild: str
    inputs: Mapping[str, Binding]
    outputs: Mapping[str, Binding]
    profiles: tuple[Ranges, ...]
    scratch: int
    module: ModuleType
    handle: Any
    log: Any
    runtime: Any


def load_engine(
    trt: ModuleType,
    path: Path,
    *,
    profile_names: tuple[str, ...],
    rebuild: str,
    weights: Path | None = None,
    host_code: bool = False,
) -> LoadedEngine:
    """Deserialize an engine whose checksum was verified.

    Args:
        trt: ``tensorrt`` or ``tensorrt_rtx``.
        path: The file.
        profile_names: What its profiles are called in messages.
        rebuild: The command that builds it again.
        weights: The ONNX file from which an engine without weights gets them; None: they are in the engine.
        host_code: Whether it brings a runtime of its own along, as engines for several versions of TensorRT do.

    Raises:
        TargetError: TensorRT doesn't start or refuses it; the message holds TensorRT's first reason.
    """
    log = make_log(trt)
    if hasattr(trt, "init_libnvinfer_plugins"):
        trt.init_libnvinfer_plugins(log, "")
    log.clear()
    runtime = start(trt, "Runtime", log)
    if host_code:
        runtime.engine_host_code_allowed = True
    # Mapped, not read: on a Jetson the host's memory is the GPU's.
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as plan:
        engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise TargetError(f"{trt.__name__} {trt.__version__} can't load '{path}': {explain(log.errors())}: {rebuild}")
    if weights is not None:
        refitter = trt.Refitter(engine, log)
        if not trt.OnnxParserRefitter(refitter, log).refit_from_file(str(weights)) or not refitter.refit_cuda_engine():
            raise TargetError(f"'{path}' doesn't take its weights from '{weights}': {explain(log.errors())}: {rebuild}")
    inputs: dict[str, Binding] = {}
    outputs: dict[str, Binding] = {}
    for binding, is_input in _bindings(trt, engine, path):
        (inputs if is_input else outputs)[binding.name] = binding
    profiles = tuple(
        Ranges(
            index=index,
            name=profile_names[index] if index < len(profile_names) else f"profile {index}",
            shapes={name: _range(engine, binding, index) for name, binding in inputs.items()},
        )
        for index in range(max(1, engine.num_optimization_profiles))
    )
    return LoadedEngine(
        path=path,
        rebuild=rebuild,
        inputs=inputs,
        outputs=outputs,
        profiles=profiles,
        scratch=int(engine.device_memory_size_v2),
        module=trt,
        handle=engine,
        log=log,
        runtime=runtime,
    )


def _bindings(trt: ModuleType, engine: Any, path: Path) -> Iterator[tuple[Binding, bool]]:
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        kind = engine.get_tensor_dtype(name).name
        if kind not in _DTYPES:
            raise TargetError(
                f"'{name}' of '{path}' is {kind}, which the run-time can't hand over: export with --dtype float16"
            )
        if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            raise TargetError(
                f"'{path}' wants '{name}' on the host, since shapes depend on its values: export the bundle again"
            )
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        alias = None
        # TensorRT before 10.15 has no layer that writes into its input.
        if not is_input and hasattr(engine, "get_aliased_input_tensor"):
            alias = engine.get_aliased_input_tensor(name) or None
        shape = tuple(engine.get_tensor_shape(name))
        yield Binding(name=name, dtype=numpy_type(_DTYPES[kind]), shape=shape, alias=alias), is_input


def _range(engine: Any, binding: Binding, profile: int) -> tuple[Shape, Shape]:
    if -1 not in binding.shape:
        return binding.shape, binding.shape
    low, _, high = engine.get_tensor_profile_shape(binding.name, profile)
    return tuple(low), tuple(high)
