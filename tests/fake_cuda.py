"""``cuda.bindings.runtime`` without a GPU: device memory is host memory whose every use is checked.

Only what ``CudaDevice`` calls. A copy or a kernel that touches memory which isn't reserved fails as on a GPU. Work is
done as late as a GPU may do it, when the stream is waited for; while a stream records, it is kept instead.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

OK, INVALID, MEMORY, ILLEGAL, NO_DRIVER, NO_DEVICE, NO_CAPTURE = 0, 1, 2, 700, 35, 100, 900
NAMES = {
    INVALID: "cudaErrorInvalidValue",
    MEMORY: "cudaErrorMemoryAllocation",
    ILLEGAL: "cudaErrorIllegalAddress",
    NO_DRIVER: "cudaErrorInsufficientDriver",
    NO_DEVICE: "cudaErrorNoDevice",
    NO_CAPTURE: "cudaErrorStreamCaptureUnsupported",
}


class Kind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class FakeCudart:
    """The module: ``total`` bytes of memory on a GPU of ``capability``; counts copies by direction."""

    cudaMemcpyKind = Kind
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaStreamNonBlocking, cudaHostAllocDefault = 1, 0

    def __init__(self, *, capability: tuple[int, int] = (8, 9), total: int = 2**30, driver: int = 13000) -> None:
        self.capability, self.total, self.driver = capability, total, driver
        self.blocks: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.copied: dict[Kind, list[int]] = {kind: [] for kind in Kind}
        self.pending = OK  # reported by the next synchronization
        self.queue: list[Callable[[], object]] = []
        self.recording: list[Callable[[], object]] | None = None
        self.graphs: list[list[Callable[[], object]]] = []
        self.launches = 0
        self.records = True

    def enqueue(self, work: Callable[[], object]) -> None:
        """Put work on the stream, or keep it while the stream records."""
        (self.queue if self.recording is None else self.recording).append(work)

    def drain(self) -> None:
        """Do what is on the stream."""
        queue, self.queue = self.queue, []
        for work in queue:
            work()

    def inside(self, address: int, size: int) -> bool:
        """Whether a range lies in one reserved block."""
        return any(start <= address and address + size <= start + len(block) for start, block in self.blocks.items())

    @property
    def used(self) -> int:
        return sum(len(block) for block in self.blocks.values())

    def cudaGetDeviceCount(self) -> tuple[int, int | None]:
        return (OK, 1) if self.driver >= 13000 else (NO_DRIVER, None)

    def cudaDriverGetVersion(self) -> tuple[int, int]:
        return OK, self.driver

    def cudaRuntimeGetVersion(self) -> tuple[int, int]:
        return OK, 13000

    def cudaSetDevice(self, _: int) -> tuple[int]:
        return (OK,)

    def cudaGetDeviceProperties(self, _: int) -> tuple[int, Any]:
        major, minor = self.capability
        return OK, SimpleNamespace(name=b"Fake GPU" + bytes(248), major=major, minor=minor)

    def cudaStreamCreateWithFlags(self, _: int) -> tuple[int, int]:
        return OK, 77

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        assert stream == 77
        assert self.recording is None, "a stream that records can't be waited for"
        self.drain()
        code, self.pending = self.pending, OK
        return (code,)

    def cudaMalloc(self, size: int) -> tuple[int, int | None]:
        assert self.recording is None, "nothing may be reserved while a stream records"
        if not size or self.used + size > self.total:
            return (MEMORY if size else INVALID), None
        address, block = _reserve(size)
        self.blocks[address] = block
        return OK, address

    def cudaFree(self, address: int) -> tuple[int]:
        self.drain()  # as the real one waits
        del self.blocks[address]
        return (OK,)

    def cudaHostAlloc(self, size: int, _: int) -> tuple[int, int]:
        address, block = _reserve(size)
        self.pinned[address] = block
        return OK, address

    def cudaFreeHost(self, address: int) -> tuple[int]:
        assert not self.queue, "a copy from this memory may be under way"
        del self.pinned[address]
        return (OK,)

    def cudaMemGetInfo(self) -> tuple[int, int, int]:
        return OK, self.total - self.used, self.total

    def cudaMemcpyAsync(self, to: int, start: int, size: int, kind: Kind, _: int) -> tuple[int]:
        device, host = (to, start) if kind == Kind.cudaMemcpyHostToDevice else (start, to)
        if not self.inside(device, size):
            return (INVALID,)
        assert any(a <= host and host + size <= a + len(block) for a, block in self.pinned.items()), "not page-locked"
        self.copied[kind].append(size)
        self.enqueue(lambda: ctypes.memmove(to, start, size))
        return (OK,)

    def cudaStreamBeginCapture(self, _: int, __: int) -> tuple[int]:
        self.recording = []
        return (OK,)

    def cudaStreamEndCapture(self, _: int) -> tuple[int, Any]:
        work, self.recording = self.recording, None
        return (OK, work) if self.records else (NO_CAPTURE, None)

    def cudaGraphInstantiate(self, graph: Any, _: int) -> tuple[int, Any]:
        self.graphs.append(graph)
        return OK, graph

    def cudaGraphDestroy(self, _: Any) -> tuple[int]:
        return (OK,)

    def cudaGraphExecDestroy(self, graph: Any) -> tuple[int]:
        self.graphs = [other for other in self.graphs if other is not graph]
        return (OK,)

    def cudaGraphLaunch(self, graph: Any, _: int) -> tuple[int]:
        self.launches += 1
        self.queue += graph
        return (OK,)

    def cudaGetLastError(self) -> tuple[int]:
        return (OK,)

    def cudaGetErrorName(self, code: int) -> tuple[int, bytes]:
        return OK, NAMES[code].encode()

    def cudaGetErrorString(self, code: int) -> tuple[int, bytes]:
        return OK, {ILLEGAL: b"an illegal memory access was encountered"}.get(code, b"error")


def _reserve(size: int) -> tuple[int, Any]:
    """Return memory at an address that is a multiple of 256, as CUDA's is; its bytes are no numbers."""
    raw = ctypes.create_string_buffer(b"\xff" * (size + 256), size + 256)
    start = ctypes.addressof(raw)
    address = -(-start // 256) * 256
    block = (ctypes.c_uint8 * size).from_buffer(raw, address - start)
    return address, block
