"""``tensorrt`` without a GPU: an engine file names an ONNX graph and its profiles, ONNX Runtime computes it.

Only what the run-time calls, with TensorRT's rules: shapes within the context's profile, every address set and inside
reserved memory, scratch memory given, a logger that is told the reason of every refusal.
"""

from __future__ import annotations

import ctypes
import json
import math
from enum import Enum
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
from fake_cuda import FakeCudart

SCRATCH = 4096
_DTYPES = {
    "tensor(float)": "FLOAT",
    "tensor(float16)": "HALF",
    "tensor(int64)": "INT64",
    "tensor(bool)": "BOOL",
    "tensor(bfloat16)": "BF16",
    "tensor(float8e4m3fn)": "FP8",
}
_NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64, "BOOL": np.bool_, "BF16": ml_dtypes.bfloat16}


_BFLOAT16 = 16  # ONNX's number


class ILogger:
    ERROR, INTERNAL_ERROR, INFO = "ERROR", "INTERNAL_ERROR", "INFO"


class TensorIOMode(Enum):
    INPUT, OUTPUT = 1, 2


class TensorLocation(Enum):
    DEVICE, HOST = 0, 1


class ExecutionContextAllocationStrategy(Enum):
    STATIC, USER_MANAGED = 0, 2


class FakeTrt:
    """The module; ``version`` is what engines are checked against. Counts the engines that it was handed.

    A plan may hold ``alias`` (outputs that share an input's memory), ``host`` (tensors that live there),
    ``uncapturable``, ``refusal`` (what loading it says), ``host_code`` (it brings a runtime along) and ``weights_from``
    (the end of the name of the graph that it needs its weights from).
    """

    ILogger, TensorIOMode, TensorLocation = ILogger, TensorIOMode, TensorLocation
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    __name__ = "tensorrt_rtx"

    def __init__(self, cuda: FakeCudart, version: str = "1.7.1.116") -> None:
        self.cuda, self.__version__ = cuda, version
        self.deserialized = 0
        self.executed: list[str] = []  # names of the profiles, in the order of the runs
        self.fail_execution = False

    def Runtime(self, log: Any) -> Any:
        runtime = SimpleNamespace(engine_host_code_allowed=False)
        runtime.deserialize_cuda_engine = lambda plan: self._deserialize(log, runtime, bytes(plan))
        return runtime

    def Refitter(self, engine: FakeEngine, log: Any) -> Any:
        return SimpleNamespace(engine=engine, refit_cuda_engine=lambda: engine.has_weights)

    def OnnxParserRefitter(self, refitter: Any, log: Any) -> Any:
        def refit_from_file(path: str) -> bool:
            fits = path.endswith(refitter.engine.plan["weights_from"])
            if not fits:
                log.log(ILogger.ERROR, "the names of the weights differ")
            refitter.engine.has_weights = fits
            return fits

        return SimpleNamespace(refit_from_file=refit_from_file)

    def _deserialize(self, log: Any, runtime: Any, data: bytes) -> FakeEngine | None:
        self.deserialized += 1
        log.log(ILogger.INFO, "Loaded engine size: 0 MiB")
        plan = json.loads(data)
        if plan.get("host_code") and not runtime.engine_host_code_allowed:
            log.log(ILogger.ERROR, "host code isn't allowed")
            return None
        if refusal := plan.get("refusal"):
            log.log(ILogger.ERROR, refusal)
            log.log(ILogger.ERROR, "a consequence of the first error")
            return None
        return FakeEngine(self, log, plan)


def make_plan(graph: Any, profiles: Any, **more: Any) -> bytes:
    """Return the engine file of a graph; see ``FakeTrt`` for what ``more`` may hold."""
    return json.dumps({"graph": str(graph), "profiles": profiles, **more}).encode()


def compute(session: Any, feeds: dict[str, Any]) -> list[Any]:
    """Run the graph on arrays; ONNX Runtime takes and gives bfloat16 only as values of its own."""

    def value(array: Any) -> Any:
        if array.dtype == ml_dtypes.bfloat16:
            return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), _BFLOAT16)
        return ort.OrtValue.ortvalue_from_numpy(array)

    def array(value: Any) -> Any:
        if value.element_type() != _BFLOAT16:
            return value.numpy()
        raw = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
        return np.frombuffer(raw, ml_dtypes.bfloat16).reshape(value.shape())

    given = {name: value(entry) for name, entry in feeds.items()}
    return [array(entry) for entry in session.run_with_ort_values(None, given)]


class FakeEngine:
    def __init__(self, trt: FakeTrt, log: Any, plan: dict[str, Any]) -> None:
        self.trt, self.log, self.plan = trt, log, plan
        self.session = ort.InferenceSession(plan["graph"], providers=["CPUExecutionProvider"])
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.outputs = {value.name: value for value in self.session.get_outputs()}
        self.values = {**self.inputs, **self.outputs}
        self.num_io_tensors = len(self.values)
        self.num_optimization_profiles = max(1, len(plan["profiles"]))
        self.device_memory_size_v2 = SCRATCH
        self.has_weights = "weights_from" not in plan

    def get_tensor_name(self, index: int) -> str:
        return list(self.values)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=_DTYPES[self.values[name].type])

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if name in self.plan.get("host", ()) else TensorLocation.DEVICE

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self.values[name].shape)

    def get_tensor_profile_shape(self, name: str, profile: int) -> Any:
        return [tuple(shape) for shape in list(self.plan["profiles"].values())[profile][name]]

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return self.plan.get("alias", {}).get(name)

    def create_execution_context(self, strategy: Any) -> FakeContext:
        assert strategy == ExecutionContextAllocationStrategy.USER_MANAGED
        return FakeContext(self)


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.profile, self.scratch = engine, -1, (0, 0)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.results: dict[str, Any] = {}

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert stream == 77
        self.profile = index
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        self.scratch = (address, size)

    def is_stream_capturable(self, stream: int) -> bool:
        return not self.engine.plan.get("uncapturable", False)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        profiles = list(self.engine.plan["profiles"].values())
        if profiles and name in profiles[self.profile]:
            low, _, high = profiles[self.profile][name]
            if not all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True)):
                self.engine.log.log(ILogger.ERROR, f"{name}: {shape} isn't in the profile")
                return False
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address, name
        assert address % 256 == 0, f"{name}: engines want addresses that are multiples of 256"
        self.addresses[name] = address
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        # The graph is run on zeros for its shapes: the values may not be there yet.
        feeds = {name: np.zeros(self.shapes[name], self._numpy(name)) for name in self.engine.inputs}
        key = tuple(sorted(self.shapes.items()))
        if self.results.get("key") != key:
            outputs = compute(self.engine.session, feeds)
            self.results = {"key": key, **dict(zip(self.engine.outputs, outputs, strict=True))}
        return tuple(self.results[name].shape)

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 77
        trt = self.engine.trt
        if trt.fail_execution:
            self.engine.log.log(ILogger.ERROR, "Cuda Runtime (out of memory)")
            return False
        assert self.engine.has_weights, "an engine without weights computes nothing"
        address, size = self.scratch
        assert trt.cuda.inside(address, max(size, SCRATCH)), "scratch memory"
        names = list(self.engine.plan["profiles"]) or ["only"]
        addresses, shapes = dict(self.addresses), dict(self.shapes)
        trt.executed.append(names[self.profile])

        def work() -> None:
            feeds = {name: self._array(name, addresses[name], shapes[name]).copy() for name in self.engine.inputs}
            for name, value in zip(self.engine.outputs, compute(self.engine.session, feeds), strict=True):
                self._array(name, addresses[name], value.shape)[...] = value

        trt.cuda.enqueue(work)
        return True

    def _numpy(self, name: str) -> Any:
        return _NUMPY[self.engine.get_tensor_dtype(name).name]

    def _array(self, name: str, address: int, shape: tuple[int, ...]) -> Any:
        dtype = np.dtype(self._numpy(name))
        size = math.prod(shape) * dtype.itemsize
        assert self.engine.trt.cuda.inside(address, size), f"{name}: {size} bytes at {address} aren't reserved"
        if not size:
            return np.empty(shape, dtype)
        raw = (ctypes.c_uint8 * size).from_address(address)
        return np.frombuffer(raw, dtype).reshape(shape)
