"""Where layers are calibrated: on CUDA where onnxruntime has it, and never half there and half on the CPU."""

from __future__ import annotations

from types import SimpleNamespace

import onnxruntime
import pytest

from lmmprune.compiler.quantize import by_layer
from lmmprune.compiler.quantize.calibrators import Integers, get_calibrator
from lmmprune.compiler.quantize.run_segment import providers

PLAN = by_layer.LayerPlan(
    names=["x"],
    calibrator=get_calibrator("minmax"),
    integers=Integers.of("u8s8"),
    smooth=False,
    cache={},
    empty=(1, 1, 0, 1),
)
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


@pytest.mark.parametrize(
    ("available", "chosen"),
    [([CPU], [CPU]), (["AzureExecutionProvider", CPU], [CPU]), (["TensorrtExecutionProvider", CUDA, CPU], [CUDA, CPU])],
)
def test_cuda_comes_first(available: list[str], chosen: list[str]) -> None:
    assert providers(SimpleNamespace(get_available_providers=lambda: available)) == chosen


def test_a_state_of_one_device_is_none_of_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = set()
    for available in ([CPU], [CUDA, CPU], [CPU]):
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda available=available: available)
        keys.add(by_layer._key(PLAN, "weights"))
    assert len(keys) == 2
