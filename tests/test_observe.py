"""Values on their way through a graph: their ends, their channels, and none that is NaN or infinite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from calibration_fixtures import S8

from lmmprune.compiler.quantize.calibrators import get_calibrator
from lmmprune.compiler.quantize.channels import observe_channels
from lmmprune.compiler.quantize.measure import measure
from lmmprune.compiler.quantize.observe import watch_extremes
from lmmprune.compiler.runtime.decode_steps import Steps
from lmmprune.errors import InputError

LOG = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[n,m] x) => (float[n,m] y) { y = Log (x)  z = Sqrt (x) }
"""


def log_steps(array: np.ndarray) -> Callable[[], Steps]:
    def steps() -> Steps:
        yield {"x": array}

    return steps


@pytest.mark.parametrize("name", ["minmax", "percentile"])
@pytest.mark.parametrize("bad", [-1.0, 0.0])
def test_nan_and_infinity_are_refused_by_name(tmp_path: Path, name: str, bad: float) -> None:
    onnx.save(onnx.parser.parse_model(LOG), tmp_path / "g.onnx")
    for place in (0, 5, 40 * 17 - 1):
        array = np.full((40, 17), 2.0, np.float32)
        array.flat[place] = bad
        with pytest.raises(InputError, match="'y' holds NaN or infinity"):
            measure(
                tmp_path / "g.onnx", ["x", "y"], [log_steps(np.abs(array) + 1), log_steps(array)],
                calibrator=get_calibrator(name), integers=S8, origin="o", cache=tmp_path / "cache",
            )  # fmt: skip
    assert not (tmp_path / "cache").exists()
    with pytest.raises(InputError, match="'y' holds NaN or infinity"):
        observe_channels(tmp_path / "g.onnx", ["y"], [log_steps(array)])


def test_the_graph_finds_its_own_extremes(tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(LOG), tmp_path / "g.onnx")
    found: dict[str, tuple[float, float]] = {}
    run = watch_extremes(tmp_path / "g.onnx", ["z", "x"], lambda name, low, high: found.update({name: (low, high)}))
    outputs = run({"x": np.array([[4.0, 9.0]], np.float32)})
    assert found == {"z": (2.0, 3.0), "x": (4.0, 9.0)}
    assert list(outputs) == ["y"]


@pytest.mark.parametrize("rows", [1, 7, 64, 1000])
def test_channels_are_those_of_all_tokens(tmp_path: Path, rows: int) -> None:
    onnx.save(onnx.parser.parse_model(LOG), tmp_path / "g.onnx")
    rng = np.random.default_rng(0)
    arrays = [rng.uniform(0.1, 9, (count, 3)).astype(np.float32) for count in (5, 1, 60, 1, 33)]
    found = observe_channels(tmp_path / "g.onnx", ["y", "x"], [log_steps(array) for array in arrays], rows=rows)
    table = np.concatenate(arrays)
    np.testing.assert_array_equal(found["x"].maxima, np.abs(table).max(0))
    np.testing.assert_allclose(found["y"].maxima, np.abs(np.log(table)).max(0), rtol=1e-5)
    stride = 1
    while len(table[::stride]) > rows:
        stride *= 2
    np.testing.assert_array_equal(found["x"].rows, table[::stride])
    assert found["y"].rows.dtype == np.float32
