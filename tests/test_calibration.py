"""Calibration runs: prefill and decode steps, several sessions, resuming, the cache, and what it refuses."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import runtime_fixtures as fx

from lmmprune.compiler.bundle import Bundle
from lmmprune.compiler.calibration.cache import default_directory, graph_sha256
from lmmprune.compiler.calibration.calibrators import CALIBRATORS, Integers, get_calibrator
from lmmprune.compiler.calibration.channels import observe_channels
from lmmprune.compiler.calibration.data import CalibrationSet, Sample, load_calibration
from lmmprune.compiler.calibration.feeds import SampleFeeds
from lmmprune.compiler.calibration.measure import measure
from lmmprune.compiler.calibration.observe import Feeds, Outputs, Steps, drive, watch_extremes, watch_values
from lmmprune.compiler.runtime import Runtime
from lmmprune.errors import InputError
from lmmprune.models.source import resolve

WATCHED = ["turned", "deeper", "state", "image_features"]
S8 = Integers.of("s8s8")
Samples = list[Callable[[], Steps]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return fx.make_bundle(tmp_path_factory.mktemp("calibration") / "out", keep=4, positions="original")


def some(count: int = 10, **changes: Any) -> CalibrationSet:
    """Return samples, every third without an answer."""
    rows = [
        Sample(image=fx.picture(i, 15 - i), prompt=f"question {i}", answer="ab"[: i % 3] and f"answer {i}")
        for i in range(count)
    ]
    rows[0] = dataclasses.replace(rows[0], **changes)
    return CalibrationSet(samples=rows, source="tests", generic=False)


def feeds(bundle: Bundle, data: CalibrationSet) -> SampleFeeds:
    return SampleFeeds(bundle.manifest, bundle.path, data, bundle.vision)


def recorded(graph: Path, steps: Steps, watched: str) -> list[tuple[Feeds, Outputs]]:
    """Run a sample and return what went in and what came out of each run."""
    run = watch_values(graph, [watched], lambda name, array: None)
    found = []

    def record(given: Feeds) -> Outputs:
        found.append((given, run(given)))
        return found[-1][1]

    drive(steps, record)
    return found


def counted(samples: Samples, ran: list[int]) -> Samples:
    """Return samples that write down which of them start."""

    def start(index: int) -> Steps:
        ran.append(index)
        return samples[index]()

    return [lambda index=index: start(index) for index in range(len(samples))]  # type: ignore[misc]  # a default


def test_an_answer_goes_through_the_cache_token_by_token(bundle: Bundle) -> None:
    data = CalibrationSet(samples=[Sample(image=fx.picture(3, 9), prompt="hi", answer="yes")], source="", generic=False)
    runs = recorded(bundle.decoder, feeds(bundle, data).decoder()[0](), "state")
    runtime = Runtime(bundle)
    look, prompt = runtime.look(fx.picture(3, 9)), runtime.prompter.encode("hi")
    positions = runtime.prompter.positions(prompt, look.kept)
    assert [given["input_ids"].tolist() for given, _ in runs] == [
        prompt.input_ids.tolist(),
        *([[byte]] for byte in b"yes"),
    ]
    assert runs[0][0]["position_ids"].tolist() == positions.tolist()
    last = int(positions[0, -1])
    assert [given["position_ids"].tolist() for given, _ in runs[1:]] == [[[last + step]] for step in (1, 2, 3)]
    past, present = bundle.manifest.cache.past[1][0], bundle.manifest.cache.present[1][0]
    assert [given[past].shape[2] for given, _ in runs] == [0, *(prompt.length + step for step in range(3))]
    for (_, before), (given, _) in itertools.pairwise(runs):
        np.testing.assert_array_equal(given[past], before[present])


def test_without_an_answer_the_models_own_tokens_are_decoded(bundle: Bundle) -> None:
    data = CalibrationSet(samples=[Sample(image=fx.picture(3), prompt="hi")], source="", generic=False)
    runs = recorded(bundle.decoder, feeds(bundle, data).decoder()[0](), "state")
    answer = Runtime(bundle).answer(fx.picture(3), "hi", 4)
    answer.text()
    assert [given["input_ids"].item() for given, _ in runs[1:]] == list(answer.tokens)[:4]


def test_an_answer_ends_where_the_positions_end(bundle: Bundle) -> None:
    data = CalibrationSet(
        samples=[Sample(image=fx.picture(3), prompt="x" * 60, answer="y" * 90)], source="", generic=False
    )
    runs = recorded(bundle.decoder, feeds(bundle, data).decoder()[0](), "state")
    assert runs[-1][0]["position_ids"].item() == bundle.manifest.max_positions - 1


# In the prefill layer 1 forgets the first two tokens.
CUT = {
    "past,4] past_key_1": "past1,4] past_key_1",
    "past,4] past_value_1": "past1,4] past_value_1",
    "total,4] present_key_1": "total1,4] present_key_1",
    "total,4] present_value_1": "total1,4] present_value_1",
    "  present_key_1 = Concat <axis = 2> (past_key_1, value)": """
  count = Shape <start = 2, end = 3> (value)
  others = Sub (count, time)
  first = Min (others, lengths)
  later_value = Slice (value, first, far, lengths)
  later_key = Slice (key, first, far, lengths)
  present_key_1 = Concat <axis = 2> (past_key_1, later_value)
""",
    "(past_value_1, key)": "(past_value_1, later_key)",
    "  seen = Add (seen0, seen1)": """
  total0 = ReduceSum <keepdims = 0> (seen0, lengths)
  total1 = ReduceSum <keepdims = 0> (seen1, lengths)
""",
    "ReduceSum <keepdims = 0> (seen, lengths)": "Add (total0, total1)",
}


def test_behind_a_cut_the_cache_is_shorter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    text = fx.DECODER
    for old, new in CUT.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    monkeypatch.setattr(fx, "DECODER", text)
    layout = dataclasses.replace(bundle.manifest.cache, length_offsets=(0, -2))
    cut = fx.make_bundle(tmp_path / "cut", keep=4, cache=layout)
    data = CalibrationSet(samples=[Sample(image=fx.picture(3), prompt="hello")], source="", generic=False)
    runs = recorded(cut.decoder, feeds(cut, data).decoder()[0](), "state")
    length = runs[0][0]["input_ids"].shape[1]
    lengths = [[given[key].shape[2] for key, _ in layout.past] for given, _ in runs]
    assert lengths == [[0, 0], *([length + step, length - 2 + step] for step in range(4))]
    answer = Runtime(cut).answer(fx.picture(3), "hello", 5)
    answer.text()
    assert [int(found["logits"][0, -1].argmax()) for _, found in runs] == list(answer.tokens)


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


def test_a_single_sample_is_worth_a_warning() -> None:
    assert some(2).warnings == ()
    (warning,) = some(1).warnings
    assert "a single sample" in warning
    generic = dataclasses.replace(some(3), generic=True, source="photographs")
    assert generic.warnings == ("INT8 ranges come from 3 photographs; give --calib with pictures of your own",)


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
