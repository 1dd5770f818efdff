"""Start TensorRT's builder or its runtime, or say in one line why it doesn't start."""

from __future__ import annotations

from types import ModuleType
from typing import Any, Literal

from lmmprune.compiler.backends.trt_log import explain
from lmmprune.compiler.targets import machine
from lmmprune.errors import TargetError


def start(trt: ModuleType, kind: Literal["Builder", "Runtime"], log: Any) -> Any:
    """Return TensorRT's builder or runtime.

    Args:
        trt: ``tensorrt`` or ``tensorrt_rtx``.
        kind: Which of them.
        log: A logger of ``make_log``.

    Raises:
        TargetError: It doesn't start, as with a driver that is dead or too old.
    """
    try:
        return getattr(trt, kind)(log)
    except TypeError as error:  # pybind11: "factory function returned nullptr"
        drivers = sorted({gpu.driver for gpu in machine.gpus() if gpu.driver})
        found = f"the NVIDIA driver is {', '.join(drivers)}" if drivers else "no NVIDIA driver answers"
        raise TargetError(
            f"{trt.__name__} {trt.__version__} can't start its {kind.lower()} ({explain(log.errors())}; {found}): "
            "update the NVIDIA driver or restart the machine; 'lmmprune doctor' shows whether driver, GPU and packages "
            "fit together"
        ) from error
