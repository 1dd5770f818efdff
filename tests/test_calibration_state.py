"""Calibrations that are stopped go on, finished ones run nothing, and whatever the runs depend on is in the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import runtime_fixtures as fx
from calibration_fixtures import S8, WATCHED, Samples, calibration_bundle, feeds, some

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.quantize.cache import default_directory, graph_sha256
from lmmprune.compiler.quantize.calibrators import Integers, get_calibrator
from lmmprune.compiler.quantize.measure import measure
from lmmprune.compiler.runtime.decode_steps import Steps


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return calibration_bundle(tmp_path_factory.mktemp("calibration") / "out")


def counted(samples: Samples, ran: list[int]) -> Samples:
    """Return samples that write down which of them start."""

    def start(index: int) -> Steps:
        ran.append(index)
        return samples[index]()

    return [lambda index=index: start(index) for index in range(len(samples))]  # type: ignore[misc]  # a default


@pytest.mark.parametrize("name", ["minmax", "mse"])
@pytest.mark.parametrize("stop", [3, 6])
def test_a_stopped_calibration_goes_on_and_ends_the_same(bundle: Bundle, tmp_path: Path, name: str, stop: int) -> None:
    samples = feeds(bundle, some()).decoder()
    calibrator = get_calibrator(name)
    whole = measure(bundle.decoder, WATCHED, samples, calibrator=calibrator, integers=S8)

    def kill(finished: int) -> None:
        if finished == stop:
            raise KeyboardInterrupt

    ran: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        measure(
            bundle.decoder, WATCHED, counted(samples, ran), calibrator=calibrator, integers=S8,
            origin="o", cache=tmp_path, done=kill,
        )  # fmt: skip
    assert ran == list(range(stop))
    ran.clear()
    told: list[int] = []
    resumed = measure(
        bundle.decoder, WATCHED, counted(samples, ran), calibrator=calibrator, integers=S8,
        origin="o", cache=tmp_path, done=told.append,
    )  # fmt: skip
    first = stop // 4 * 4
    assert ran == list(range(first, 10))
    assert told == ([first] if first else []) + list(range(first + 1, 11))
    assert resumed == whole
    assert [file.suffix for file in tmp_path.iterdir()] == [".npz"], "one file, nothing temporary"


def test_a_finished_calibration_runs_nothing(bundle: Bundle, tmp_path: Path) -> None:
    samples = feeds(bundle, some()).decoder()
    ran: list[int] = []

    def again(name: str, options: dict[str, str], **changes: Any) -> Any:
        ran.clear()
        given = {"origin": "o", "cache": tmp_path, "calibrator": get_calibrator(name, options), "integers": S8}
        return measure(bundle.decoder, WATCHED, counted(samples, ran), **{**given, **changes})

    first = again("percentile", {})
    assert len(ran) == 10
    assert again("percentile", {}) == first
    assert ran == []
    narrower = again("percentile", {"percentile": "90"})
    assert ran == [], "another parameter reads the same histograms"
    assert narrower != first
    again("entropy", {}, integers=Integers.of("u8s8"))
    assert ran == [], "and so does another calibrator"
    again("percentile", {}, origin="p")
    assert len(ran) == 10
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:-40])
    assert again("percentile", {}) == first
    assert len(ran) == 10, "a damaged state counts as none"


def test_the_cache_is_where_the_user_says(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMMPRUNE_CACHE", str(tmp_path / "mine"))
    samples = feeds(bundle, some(2)).vision()
    measure(bundle.vision, ["patches"], samples, calibrator=get_calibrator("minmax"), integers=S8, origin="o")
    assert [file.parent for file in (tmp_path / "mine").rglob("*.npz")] == [default_directory()]
    (tmp_path / "file").touch()
    monkeypatch.setenv("LMMPRUNE_CACHE", str(tmp_path / "file"))
    measure(bundle.vision, ["patches"], samples, calibrator=get_calibrator("minmax"), integers=S8, origin="o")
    monkeypatch.delenv("LMMPRUNE_CACHE")
    assert default_directory() == Path.home() / ".cache" / "lmmprune" / "calibration"


def test_whatever_the_runs_depend_on_is_in_the_digest(bundle: Bundle, tmp_path: Path) -> None:
    other = fx.make_bundle(tmp_path / "other", keep=4)
    wider = fx.make_bundle(tmp_path / "wider", keep=6)
    digests = [
        feeds(bundle, some()).digest(),
        feeds(bundle, some(9)).digest(),
        feeds(bundle, some(image=fx.picture(7))).digest(),
        feeds(bundle, some(prompt="another")).digest(),
        feeds(bundle, some(answer="another")).digest(),
        feeds(other, some()).digest(),
        feeds(wider, some()).digest(),
    ]
    assert len(set(digests)) == len(digests)
    assert feeds(bundle, some()).digest() == digests[0]


def test_another_weight_is_another_graph(bundle: Bundle, tmp_path: Path) -> None:
    other = fx.make_bundle(tmp_path / "other", keep=4)
    assert graph_sha256(other.decoder) == graph_sha256(bundle.decoder)
    weights = other.path / "decoder.data"
    raw = bytearray(weights.read_bytes())
    raw[100] ^= 1
    weights.write_bytes(raw)
    assert graph_sha256(other.decoder) != graph_sha256(bundle.decoder)
