"""Stage ``peak``: what this GPU reaches in a large product and in a large copy."""

from __future__ import annotations

from typing import Any

from gpu_check import roofline
from gpu_check.settings import Save, Settings
from gpu_check.timing import interleaved
from lmmprune.errors import TargetError, require

_COPY = 2**30  # bytes; more than any cache holds


def measure(settings: Settings, save: Save) -> dict[str, Any]:
    """Return 1e12 operations per second of products by type, 1e9 bytes per second read and written by a copy."""
    torch: Any = require("torch", "export")
    if not torch.cuda.is_available():
        raise TargetError("torch sees no GPU: install a build of torch for the CUDA of the driver")
    data: dict[str, Any] = {"gpu": torch.cuda.get_device_name(0), "tera": {}}
    found = roofline.known(data["gpu"])
    data["known"] = None if found is None else {"tera": dict(found.tera), "giga_bytes": found.giga_bytes}
    save(data)
    size = 4096 if settings.quick else 8192
    operations = 2 * size**3
    half = torch.randn(size, size, device="cuda", dtype=torch.float16)
    source = torch.empty(_COPY, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    eight = torch.randint(-127, 128, (size, size), device="cuda", dtype=torch.int8)

    def timed(work: Any) -> float:
        def run() -> None:
            work()
            torch.cuda.synchronize()

        return float(interleaved({"": run}, settings.rounds)[""]["median"])

    data["giga_bytes"] = 2 * _COPY / timed(lambda: target.copy_(source)) / 1e6
    save(data)
    data["tera"]["float16"] = operations / timed(lambda: half @ half) / 1e9
    save(data)
    data["tera"]["int8"] = operations / timed(lambda: torch._int_mm(eight, eight.t())) / 1e9
    return data
