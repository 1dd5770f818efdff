"""Calibrating layer by layer gives what running the whole decoder gives, and goes on where it was stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from short_request import short_request

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.export.export import export
from lmmprune.compiler.export.trace import shared_trace
from lmmprune.compiler.quantize import by_layer
from lmmprune.compiler.quantize import quantize as module
from lmmprune.models.canonical import Canonical
from lmmprune.models.source import Source


@pytest.fixture(scope="module")
def traced() -> Callable[[Source], Canonical]:
    return shared_trace()


def quantized(
    path: Path, traced: Callable[[Source], Canonical], monkeypatch: pytest.MonkeyPatch, *, layers: bool, **options: Any
) -> Bundle:
    """Export tiny-llava, its decoder calibrated as a whole or layer by layer."""
    monkeypatch.setattr(module, "WHOLE_BYTES", 0 if layers else 2**31)
    request = short_request(model="tiny-llava", output=path, int8=True, calibration_samples=3, **options)
    export(request, traced=traced)
    return Bundle.open(path)


def scales(bundle: Bundle) -> dict[str, np.ndarray[Any, Any]]:
    """Return every scale and zero point of the decoder's activations."""
    import onnx_ir as ir

    found = {}
    for node in ir.load(bundle.decoder).graph:
        if node.op_type == "QuantizeLinear":
            for value in node.inputs[1:]:
                assert value is not None
                assert value.const_value is not None
                found[str(value.name)] = value.const_value.numpy()
    return found


@pytest.mark.parametrize(
    ("options", "relative"),
    [
        pytest.param({"ratio": 0.5}, 1e-5, id="freepruner"),
        pytest.param({"ratio": 0.5, "method": "fastv", "smooth": False}, 1e-5, id="cut in the decoder"),
        pytest.param({"calibrator": "percentile"}, 1e-3, id="histograms"),
    ],
)
def test_ranges_are_those_of_the_whole_decoder(
    options: dict[str, Any],
    relative: float,
    traced: Callable[[Source], Canonical],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = quantized(tmp_path / "whole", traced, monkeypatch, layers=False, **options)
    parts = quantized(tmp_path / "parts", traced, monkeypatch, layers=True, **options)
    expected, found = scales(whole), scales(parts)
    assert list(expected) == list(found)
    assert len(expected) > 20
    for name, array in expected.items():
        # A zero point may fall on the other side of a half.
        assert_allclose(
            found[name].astype(float), array.astype(float), rtol=relative, atol=1 if array.dtype != np.float32 else 0
        )
    record, other = (b.manifest.precision.calibration for b in (parts, whole))
    assert record is not None
    assert other is not None
    assert record["decoder"]["by_layer"]
    assert record["decoder"].get("smoothed") == other["decoder"].get("smoothed")


def test_a_stopped_calibration_goes_on_to_the_same_bundle(
    traced: Callable[[Source], Canonical], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    monkeypatch.setenv("LMMPRUNE_CACHE", str(tmp_path / "one"))
    straight = quantized(tmp_path / "straight", traced, monkeypatch, layers=True, ratio=0.5)

    monkeypatch.setenv("LMMPRUNE_CACHE", str(tmp_path / "two"))
    monkeypatch.setattr(by_layer, "SAVE_SECONDS", -1.0)
    segment, ran = by_layer._segment, []

    def stop_at_the_fourth(*arguments: Any) -> None:
        if len(ran) == 3:
            raise KeyboardInterrupt
        ran.append(1)
        segment(*arguments)

    monkeypatch.setattr(by_layer, "_segment", stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        quantized(tmp_path / "stopped", traced, monkeypatch, layers=True, ratio=0.5)
    ran.clear()
    monkeypatch.setattr(by_layer, "_segment", lambda *arguments: (ran.append(1), segment(*arguments))[1])
    resumed = quantized(tmp_path / "stopped", traced, monkeypatch, layers=True, ratio=0.5)
    assert len(ran) == 3  # embeddings and two layers were done; two layers and the head weren't
    assert resumed.manifest.files == straight.manifest.files
    ran.clear()
    again = quantized(tmp_path / "again", traced, monkeypatch, layers=True, ratio=0.5)
    assert not ran
    assert again.manifest.files == straight.manifest.files
    # A cache that can't be written costs the resuming, not the export.
    (tmp_path / "three").write_text("")
    monkeypatch.setenv("LMMPRUNE_CACHE", str(tmp_path / "three"))
    without = quantized(tmp_path / "without", traced, monkeypatch, layers=True, ratio=0.5)
    assert without.manifest.files == straight.manifest.files
