"""Ranges from calibration runs: every run counts, whatever a session holds; what is refused, what is warned of."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from calibration_fixtures import S8, WATCHED, calibration_bundle, feeds, some

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.data.calibration import CalibrationSet, load_calibration
from lmmprune.compiler.quantize.calibrators import CALIBRATORS, get_calibrator
from lmmprune.compiler.quantize.measure import measure
from lmmprune.compiler.quantize.observe import watch_values
from lmmprune.compiler.runtime.decode_steps import drive
from lmmprune.errors import InputError
from lmmprune.models.source import resolve


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return calibration_bundle(tmp_path_factory.mktemp("calibration") / "out")


@pytest.mark.parametrize("name", CALIBRATORS)
def test_it_is_deterministic_however_the_values_are_fetched(bundle: Bundle, name: str) -> None:
    samples = feeds(bundle, some()).decoder()
    found = [
        measure(bundle.decoder, WATCHED, samples, calibrator=get_calibrator(name), integers=S8, limit=limit)
        for limit in (2**30, 2**30, 1)
    ]
    assert found[0] == found[1] == found[2]
    assert list(found[0]) == WATCHED
    assert list(bundle.path.glob("*.copy.onnx*")) == []


def test_ranges_cover_every_run(bundle: Bundle) -> None:
    seen: dict[str, list[np.ndarray]] = {name: [] for name in WATCHED}
    run = watch_values(bundle.decoder, WATCHED, lambda name, array: seen[name].append(array), limit=3000)
    for sample in feeds(bundle, some()).decoder():
        drive(sample(), run)
    found = measure(
        bundle.decoder, WATCHED, feeds(bundle, some()).decoder(), calibrator=get_calibrator("minmax"), integers=S8
    )
    assert found == {
        name: (min(float(a.min()) for a in arrays), max(float(a.max()) for a in arrays))
        for name, arrays in seen.items()
    }
    assert {array.shape[1] == 1 for array in seen["turned"]} == {True, False}, "prefill and decode steps"


def test_a_single_sample_is_worth_a_warning() -> None:
    assert some(2).warnings == ()
    (warning,) = some(1).warnings
    assert "a single sample" in warning
    generic = dataclasses.replace(some(3), generic=True, source="photographs")
    assert generic.warnings == ("INT8 ranges come from 3 photographs; give --calib with pictures of your own",)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"image": 3, "prompt": "what?"}', "calib.jsonl:1: expected an object with 'image', 'prompt'"),
        (b'\n{"image": "a.png", "prompt": null}', "calib.jsonl:2: expected"),
        (b'{"image": "a.png", "prompt": "what?", "answer": 3}', "calib.jsonl:1: expected"),
        (b'["a.png", "what?"]', "calib.jsonl:1: expected"),
        (b"{", "calib.jsonl:1: expected"),
        (b"\xff\xfe", "calib.jsonl' can't be read as text"),
        (b"\n", "calib.jsonl' is empty"),
    ],
)
def test_a_file_that_is_no_calibration_data_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "calib.jsonl").write_bytes(data)
    with pytest.raises(InputError, match=message):
        load_calibration(resolve("tiny-llava"), tmp_path / "calib.jsonl", 4)


def test_no_data_is_refused_and_nothing_is_written(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no samples in tests: give --calib"):
        CalibrationSet(samples=[], source="tests", generic=False)
    with pytest.raises(InputError, match="0 calibration samples: expected 1 or more"):
        load_calibration(resolve("tiny-llava"), None, 0)
    with pytest.raises(InputError, match="no samples to calibrate on"):
        measure(
            bundle.decoder, WATCHED, [], calibrator=get_calibrator("mse"), integers=S8,
            origin="o", cache=tmp_path / "cache",
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []
    nothing = measure(
        bundle.decoder, [], feeds(bundle, some(1)).decoder(), calibrator=get_calibrator("mse"), integers=S8
    )
    assert nothing == {}
