"""The stand-ins have no method that the real modules lack: what is tested with them exists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fake_cuda
import fake_trt
import pytest
from engine_fixtures import one_line

from lmmprune.compiler.backends.engine import load_engine
from lmmprune.errors import TargetError


def public(thing: Any) -> set[str]:
    return {name for name in vars(thing) if not name.startswith("_")}


def test_tensorrts_names() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    engine = public(fake_trt.FakeEngine) | {"num_io_tensors", "num_optimization_profiles", "device_memory_size_v2"}
    for real, names in (
        (trt.ICudaEngine, engine),
        (trt.IExecutionContext, public(fake_trt.FakeContext)),
        (trt.Runtime, {"deserialize_cuda_engine", "engine_host_code_allowed"}),
        (trt.Refitter, {"refit_cuda_engine"}),
        (trt.OnnxParserRefitter, {"refit_from_file"}),
        (trt.ILogger, public(fake_trt.ILogger)),
        (trt, public(fake_trt.FakeTrt) - {"cuda"}),
    ):
        assert {name for name in names if not hasattr(real, name)} == set(), real
    for fake in (fake_trt.TensorIOMode, fake_trt.TensorLocation, fake_trt.ExecutionContextAllocationStrategy):
        real = getattr(trt, fake.__name__).__members__
        assert {member.name for member in fake} <= real.keys()
    assert {*fake_trt._DTYPES.values()} <= trt.DataType.__members__.keys()


def test_cudas_names() -> None:
    cuda = pytest.importorskip("cuda.bindings.runtime")
    names = {name for name in public(fake_cuda.FakeCudart) if name.startswith("cuda")}
    assert {name for name in names if not hasattr(cuda, name)} == set()
    assert {kind.name for kind in fake_cuda.Kind} <= cuda.cudaMemcpyKind.__members__.keys()
    for code, name in fake_cuda.NAMES.items():
        assert int(getattr(cuda.cudaError_t, name)) == code
    assert cuda.cudaGetErrorName(cuda.cudaError_t.cudaErrorMemoryAllocation)[1] == b"cudaErrorMemoryAllocation"


def test_what_is_no_engine_is_refused_by_the_real_module(tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    path = tmp_path / "x.engine"
    path.write_bytes(b"no engine" * 100)
    with pytest.raises(TargetError) as e:
        load_engine(trt, path, profile_names=(), rebuild="lmmprune build out")
    assert "another version of TensorRT built it, or it is no engine (" in one_line(e.value)
    assert str(e.value).endswith(": lmmprune build out")
