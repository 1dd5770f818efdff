"""Stage ``cuda``: the run-time's own layer over the driver, without any compiler: copies, memory, errors, graphs."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from gpu_check.settings import Save, Settings
from lmmprune.compiler.backends.cuda import CudaDevice
from lmmprune.compiler.backends.device import Device
from lmmprune.errors import TargetError

# Bytes: less and more than the page-locked stage holds at first.
_SIZES = (1, 1000, 2**20, 2**20 + 1, 2**25)


def check(settings: Settings, save: Save) -> dict[str, Any]:
    """Return what works; every entry of ``checks`` is true where the driver did what was asked."""
    device = CudaDevice()
    free, total = device.memory()
    data: dict[str, Any] = {"gpu": device.name, "arch": device.arch, "free_bytes": free, "total_bytes": total}
    data["checks"] = {}
    for name, work in (("copies", copies), ("out of memory", out_of_memory), ("graph", graph), ("freed", freed)):
        data["checks"][name] = work(device)
        save(data)
    data["host_to_device_giga_bytes"], data["device_to_host_giga_bytes"] = speeds(device)
    return data


def copies(device: Device) -> bool:
    """Copy arrays there and back, changing each before the copy is waited for."""
    rng = np.random.default_rng(0)
    same = []
    for size in _SIZES:
        array = rng.integers(0, 256, size, np.uint8)
        expected = array.copy()
        block, other = device.allocate(size, "a copy"), device.allocate(size, "a copy")
        device.upload(block.address, array)
        array[:] = 0
        device.synchronize()
        device.upload(other.address, array)  # the stage, which copies both ways pass, holds the array no longer
        same.append(bool((device.download(block.address, (size,), array.dtype) == expected).all()))
    return all(same)


def out_of_memory(device: Device) -> bool:
    """Ask for more than there is: one line, and the device goes on working."""
    try:
        device.allocate(4 * device.memory()[1], "a test")
    except TargetError as error:
        return "is out of memory: a test needs" in str(error) and copies(device)
    return False


def graph(device: Device) -> bool:
    """Record a copy, which must not happen before the graph is launched."""
    block = device.allocate(8, "a graph")
    first, second = np.full(8, 1, np.uint8), np.full(8, 2, np.uint8)
    device.upload(block.address, first)
    device.synchronize()
    recorded = device.capture(lambda: device.upload(block.address, second))
    device.synchronize()
    early = (device.download(block.address, (8,), first.dtype) != first).any()
    recorded = device.capture(lambda: device.upload(block.address, second))
    recorded.launch()
    device.synchronize()
    third = device.allocate(8, "a graph")
    device.upload(third.address, first)  # as in copies
    return not early and bool((device.download(block.address, (8,), second.dtype) == second).all())


def freed(device: Device) -> bool:
    """Reserve and drop most of the memory several times."""
    for _ in range(4):
        block = device.allocate(int(0.6 * device.memory()[0]), "a test")
        del block
    return True


def speeds(device: Device) -> tuple[float, float]:
    """Return 1e9 bytes per second to the device and back, through the page-locked stage."""
    array = np.zeros(2**25, np.uint8)
    block = device.allocate(array.nbytes, "a copy")
    spent: list[list[float]] = [[], []]
    for _ in range(5):
        start = time.perf_counter()
        device.upload(block.address, array)
        device.synchronize()
        middle = time.perf_counter()
        device.download(block.address, array.shape, array.dtype)
        spent[0].append(middle - start)
        spent[1].append(time.perf_counter() - middle)
    return array.nbytes / min(spent[0]) / 1e9, array.nbytes / min(spent[1]) / 1e9
