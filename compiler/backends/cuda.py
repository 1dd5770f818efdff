"""A CUDA GPU through NVIDIA's ``cuda-bindings``: no framework, and no driver needed to import it."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmmprune.compiler.backends.device import Block, Graph
from lmmprune.errors import TargetError, require

_NO_DRIVER, _NO_DEVICE, _OUT_OF_MEMORY = 35, 100, 2  # cudaError_t: InsufficientDriver, NoDevice, MemoryAllocation
_STAGE = 2**20  # page-locked bytes: a picture's pixel values in half precision


class CudaDevice:
    """The first visible GPU; satisfies ``Device``.

    Copies from the host go through page-locked memory and don't wait: the stage fills up from its start and is empty
    again whenever the stream was waited for.
    """

    def __init__(self, extra: str = "gpu") -> None:
        """Open the device and make a stream.

        Args:
            extra: The extra of lmmprune that installs ``cuda-bindings`` beside the engine's runtime.

        Raises:
            MissingExtraError: ``cuda-bindings`` isn't installed.
            TargetError: There is no driver, it is too old, or it shows no GPU.
        """
        self._cuda: Any = require("cuda.bindings.runtime", extra)
        code, count = self._cuda.cudaGetDeviceCount()
        if int(code) or not count:
            raise TargetError(self._absent(int(code)))
        self._check(self._cuda.cudaSetDevice(0), "choosing the GPU")
        properties = self._check(self._cuda.cudaGetDeviceProperties(0), "asking for the GPU's properties")
        self.name = bytes(properties.name).split(b"\0")[0].decode(errors="replace")
        self.arch = f"sm{properties.major}{properties.minor}"
        self._handle = self._check(
            self._cuda.cudaStreamCreateWithFlags(self._cuda.cudaStreamNonBlocking), "making a stream"
        )
        self.stream = int(self._handle)
        self._stage, self._used = self._pinned(_STAGE), 0

    def allocate(self, size: int, purpose: str) -> Block:
        """Reserve memory; see ``Device``."""
        code, address = self._cuda.cudaMalloc(size)
        if int(code) == _OUT_OF_MEMORY:
            self._cuda.cudaGetLastError()  # or the next call reports it again
            free, total = self.memory()
            raise TargetError(
                f"{self.name} is out of memory: {purpose} needs {_mib(size)}, {_mib(free)} of {_mib(total)} are free: "
                "close what else uses the GPU, remove more tokens (--ratio), export with --int8, or build with a "
                "smaller --max-prompt"
            )
        self._check((code,), f"reserving {_mib(size)} for {purpose}")
        return _Block(self._cuda, int(address), size)

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Enqueue a copy to the device; see ``Device``."""
        if self._used + array.nbytes > self._stage.size:
            self.synchronize()
            if array.nbytes > self._stage.size:
                self._stage = self._pinned(array.nbytes)
        place = self._stage.array[self._used : self._used + array.nbytes]
        place[:] = array.reshape(-1).view(np.uint8)
        self._used += array.nbytes
        self._copy(address, place.ctypes.data, array.nbytes, self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice)

    def download(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Copy from the device and wait; see ``Device``."""
        array = np.empty(shape, dtype)
        self.synchronize()
        if array.nbytes > self._stage.size:
            self._stage = self._pinned(array.nbytes)
        if array.nbytes:
            kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
            self._copy(self._stage.array.ctypes.data, address, array.nbytes, kind)
            self.synchronize()
            array.reshape(-1).view(np.uint8)[:] = self._stage.array[: array.nbytes]
        return array

    def synchronize(self) -> None:
        """Wait for the stream; see ``Device``."""
        self._check(self._cuda.cudaStreamSynchronize(self._handle), "running on the GPU")
        self._used = 0

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """Record work; see ``Device``."""
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._check(self._cuda.cudaStreamBeginCapture(self._handle, mode), "recording a CUDA graph")
        try:
            enqueue()
        finally:
            # Also after an error: a stream that still records can't be used for anything else.
            ended = self._cuda.cudaStreamEndCapture(self._handle)
        graph = self._check(ended, "recording a CUDA graph")
        made = self._cuda.cudaGraphInstantiate(graph, 0)
        self._cuda.cudaGraphDestroy(graph)
        return _Graph(self, self._check(made, "making a CUDA graph"))

    def memory(self) -> tuple[int, int]:
        """Return free and total bytes."""
        free, total = self._check(self._cuda.cudaMemGetInfo(), "asking for free memory")
        return int(free), int(total)

    def _launch(self, graph: Any) -> None:
        self._check(self._cuda.cudaGraphLaunch(graph, self._handle), "starting a CUDA graph")

    def _copy(self, to: int, start: int, size: int, kind: Any) -> None:
        if size:
            self._check(self._cuda.cudaMemcpyAsync(to, start, size, kind, self._handle), "copying")

    def _pinned(self, size: int) -> _Pinned:
        address = self._check(
            self._cuda.cudaHostAlloc(size, self._cuda.cudaHostAllocDefault), f"locking {_mib(size)} of host memory"
        )
        return _Pinned(self._cuda, int(address), size)

    def _check(self, result: tuple[Any, ...], doing: str) -> Any:
        """Return what a call gave beside its code.

        Raises:
            TargetError: The code is that of an error.
        """
        code, *values = result
        if int(code):
            name, text = (
                part.decode() if isinstance(part, bytes) else str(part)
                for part in (self._cuda.cudaGetErrorName(code)[1], self._cuda.cudaGetErrorString(code)[1])
            )
            raise TargetError(
                f"CUDA failed {doing}: {text} ({name}): run it again in a new process; if it stays, 'lmmprune doctor' "
                "shows whether driver, GPU and packages fit together"
            )
        return values[0] if len(values) == 1 else tuple(values)

    def _absent(self, code: int) -> str:
        driver = int(self._cuda.cudaDriverGetVersion()[1] or 0)
        needed = int(self._cuda.cudaRuntimeGetVersion()[1] or 0)
        if driver and code == _NO_DRIVER:
            return (
                f"the NVIDIA driver serves CUDA up to {_version(driver)}, the installed cuda-bindings are for "
                f"{_version(needed)}: update the driver, or pip install 'cuda-bindings<{driver // 1000 + 1}'"
            )
        if not driver:
            return "no NVIDIA driver is loaded"
        if code in (0, _NO_DEVICE):
            return "the NVIDIA driver shows no GPU (is CUDA_VISIBLE_DEVICES set?)"
        return f"the NVIDIA driver fails ({self._cuda.cudaGetErrorString(self._cuda.cudaError_t(code))[1]!r})"


class _Block:
    """Device memory that is freed when it is dropped."""

    def __init__(self, cuda: Any, address: int, size: int) -> None:
        self.address, self.size = address, size
        weakref.finalize(self, cuda.cudaFree, address).atexit = False  # at exit the driver frees all of it


class _Pinned:
    """Page-locked host memory, freed when it is dropped."""

    def __init__(self, cuda: Any, address: int, size: int) -> None:
        self.size = size
        self.array: NDArray[np.uint8] = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        weakref.finalize(self, cuda.cudaFreeHost, address).atexit = False


class _Graph:
    """A recorded graph on its device's stream."""

    def __init__(self, device: CudaDevice, handle: Any) -> None:
        self._device, self._handle = device, handle
        weakref.finalize(self, device._cuda.cudaGraphExecDestroy, handle).atexit = False

    def launch(self) -> None:
        """Enqueue the work; see ``Graph``."""
        self._device._launch(self._handle)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
