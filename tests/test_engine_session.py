"""One engine on the fake GPU: profiles, graphs, caches updated in place, buffers."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from engine_fixtures import fake_gpu, one_line
from fake_cuda import ILLEGAL, FakeCudart
from fake_trt import FakeTrt, make_plan

from lmmprune.compiler.backends.cuda import CudaDevice
from lmmprune.compiler.backends.engine import load_engine
from lmmprune.compiler.backends.engine_session import EngineSession
from lmmprune.compiler.backends.pool import Pool, roomy
from lmmprune.compiler.backends.trt_log import explain
from lmmprune.errors import BundleError, InputError, TargetError

STATIC = """
g (float[1,4] cache, float[1,4] x) => (float[1,4] next, float[1,4] y)
{ next = Add (cache, x)  y = Mul (next, x) }
"""
GROWING = """
g (int64[1,seq] input_ids, float[1,past] cache) => (float[1,total] next)
{ new = Cast <to = 1> (input_ids)  next = Concat <axis = 1> (cache, new) }
"""
RANGES: dict[str, Any] = {
    "prefill": {"input_ids": [[1, 1], [1, 4], [1, 8]], "cache": [[1, 0], [1, 0], [1, 0]]},
    "decode": {"input_ids": [[1, 1], [1, 1], [1, 1]], "cache": [[1, 1], [1, 4], [1, 20]]},
}


@pytest.fixture
def trt() -> Iterator[FakeTrt]:
    with fake_gpu() as module:
        yield module


def make(trt: FakeTrt, folder: Path, text: str, profiles: Any = None, **plan: Any) -> EngineSession:
    graph, engine = folder / "g.onnx", folder / "g.engine"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}'), graph)
    engine.write_bytes(make_plan(graph, profiles or {}, **plan))
    device = CudaDevice()
    module: Any = trt
    loaded = load_engine(module, engine, profile_names=tuple(profiles or ()), rebuild="lmmprune build out")
    return EngineSession(loaded, device, device.allocate(loaded.scratch, "scratch"))


def row(*values: float) -> Any:
    return np.array([values], np.float32)


def test_fixed_shapes_are_recorded_when_the_buffers_come_by_again(trt: FakeTrt, tmp_path: Path) -> None:
    session = make(trt, tmp_path, STATIC)
    cache, cuda = session.upload(row(1, 2, 3, 4)), trt.cuda
    for step in range(6):
        x = session.upload(row(step, step, step, 1))
        outputs = session.run({"cache": cache, "x": x})
        np.testing.assert_array_equal(session.download(outputs["next"]), row(1 + step, 2 + step, 3 + step, 5))
        np.testing.assert_array_equal(session.download(outputs["y"])[0, 3], 5)
        del x, outputs
    # Once for TensorRT to settle, once recorded; from then on the graph alone.
    assert len(trt.executed) == 2
    assert cuda.launches == 5
    assert session.recorded == {"profile 0": 1}
    del session, cache
    gc.collect()
    assert cuda.graphs == []


def test_other_buffers_get_a_graph_of_their_own(trt: FakeTrt, tmp_path: Path) -> None:
    session = make(trt, tmp_path, STATIC)
    x, kept = session.upload(row(1, 1, 1, 1)), []
    caches = [session.upload(row(n, n, n, n)) for n in range(3)]
    for turn in range(4):
        for n, cache in enumerate(caches):
            outputs = session.run({"cache": cache, "x": x})
            np.testing.assert_array_equal(session.download(outputs["next"]), row(*[n + 1] * 4))
            if turn == 3:
                kept.append(outputs["next"])
    for n, value in enumerate(kept):
        np.testing.assert_array_equal(session.download(value), row(*[n + 1] * 4))


def test_old_graphs_make_room(trt: FakeTrt, tmp_path: Path) -> None:
    session = make(trt, tmp_path, STATIC)
    x, held = session.upload(row(1, 1, 1, 1)), []
    for n in range(20):
        cache = session.upload(row(n, n, n, n))
        held.append(cache)  # its buffer never comes back
        for _ in range(3):
            outputs = session.run({"cache": cache, "x": x})
            np.testing.assert_array_equal(session.download(outputs["next"]), row(*[n + 1] * 4))
            del outputs
    assert session.recorded == {"profile 0": 8}
    assert len(trt.cuda.graphs) == 8


@pytest.mark.parametrize("says_so", [True, False])
def test_what_cannot_be_recorded_is_run(says_so: bool, trt: FakeTrt, tmp_path: Path) -> None:
    session = make(trt, tmp_path, STATIC, uncapturable=says_so)
    trt.cuda.records = False
    cache, x = session.upload(row(1, 2, 3, 4)), session.upload(row(1, 1, 1, 1))
    for _ in range(4):
        outputs = session.run({"cache": cache, "x": x})
        np.testing.assert_array_equal(session.download(outputs["next"]), row(2, 3, 4, 5))
        del outputs
    assert trt.cuda.launches == 0
    assert session.recorded == {"profile 0": 0}
    reason = "TensorRT says that it can't be" if says_so else "cudaErrorStreamCaptureUnsupported"
    assert reason in session.unrecorded["profile 0"]


def test_a_cache_that_is_updated_in_place_keeps_its_buffer(trt: FakeTrt, tmp_path: Path) -> None:
    session = make(trt, tmp_path, STATIC, alias={"next": "cache"})
    cache, x = session.upload(row(0, 0, 0, 0)), session.upload(row(1, 2, 3, 4))
    allocations = session.allocations
    for step in range(1, 6):
        outputs = session.run({"cache": cache, "x": x})
        assert outputs["next"].address == cache.address
        np.testing.assert_array_equal(session.download(outputs["next"]), step * row(1, 2, 3, 4))
        cache = outputs["next"]
        del outputs
    assert session.allocations == allocations + 1, "only y"
    assert session.recorded == {"profile 0": 1}


def test_profiles_are_chosen_by_shape_and_a_growing_cache_is_not_recorded(trt: FakeTrt, tmp_path: Path) -> None:
    session = make(trt, tmp_path, GROWING, RANGES)

    def ids(*values: int) -> Any:
        return session.upload(np.array([values], np.int64))

    cache = session.upload(np.zeros((1, 0), np.float32))
    for step in ((1, 2, 3), (4,), (5,), (6,)):
        cache = session.run({"input_ids": ids(*step), "cache": cache})["next"]
    np.testing.assert_array_equal(session.download(cache), row(1, 2, 3, 4, 5, 6))
    assert trt.executed == ["prefill", "decode", "decode", "decode"]
    assert session.unrecorded == {}
    assert session.recorded == {"prefill": 0, "decode": 0}

    empty = session.upload(np.zeros((1, 0), np.float32))
    with pytest.raises(InputError) as long:
        session.run({"input_ids": ids(*range(12)), "cache": empty})
    assert one_line(long.value) == (
        "'input_ids' is 1 x 12, the engine takes 1 x 1 to 1 x 8 (profile 'prefill') or 1 x 1 to 1 x 1 (profile "
        "'decode'): ask a shorter question, or lmmprune build out --max-prompt 12"
    )
    with pytest.raises(InputError, match=r"'cache' is 1 x 30, .* or 1 x 1 to 1 x 20 \(profile 'decode'\): lmmp"):
        session.run({"input_ids": ids(1), "cache": session.upload(np.zeros((1, 30), np.float32))})
    # The session is as good as before.
    assert session.download(session.run({"input_ids": ids(7), "cache": cache})["next"]).shape == (1, 7)


def test_a_graph_is_forgotten_when_a_shape_changes(trt: FakeTrt, tmp_path: Path) -> None:
    session = make(trt, tmp_path, GROWING, RANGES)
    empty = session.upload(np.zeros((1, 0), np.float32))
    feeds = [{"input_ids": session.upload(np.arange(n)[None]), "cache": empty} for n in (3, 5)]
    for turn in range(4):
        np.testing.assert_array_equal(session.download(session.run(feeds[0])["next"]), row(0, 1, 2))
        assert session.recorded["prefill"] == (turn > 0)
    for turn in range(3):
        np.testing.assert_array_equal(session.download(session.run(feeds[1])["next"]), row(0, 1, 2, 3, 4))
        assert session.recorded["prefill"] == (turn > 0)
    np.testing.assert_array_equal(session.download(session.run(feeds[0])["next"]), row(0, 1, 2))


def test_wrong_inputs_are_one_line(trt: FakeTrt, tmp_path: Path) -> None:
    session = make(trt, tmp_path, STATIC)
    x = session.upload(row(1, 1, 1, 1))
    with pytest.raises(BundleError, match="lacks cache and has unknown cash: lmmprune build out"):
        session.run({"x": x, "cash": x})
    with pytest.raises(BundleError, match=r"'cache' of .* is float32, not float64: lmmprune build out"):
        session.run({"x": x, "cache": session.upload(np.zeros((1, 4)))})


def test_failures_while_running_name_the_first_reason(trt: FakeTrt, tmp_path: Path) -> None:
    session = make(trt, tmp_path, STATIC)
    feeds = {"cache": session.upload(row(1, 1, 1, 1)), "x": session.upload(row(1, 1, 1, 1))}
    trt.fail_execution = True
    with pytest.raises(TargetError, match=r"out of memory: close what else uses it \(Cuda Runtime \(out of memory\)\)"):
        session.run(feeds)
    trt.fail_execution = False
    trt.cuda.pending = ILLEGAL
    with pytest.raises(TargetError, match=r"an illegal memory access was encountered \(cudaErrorIllegalAddress\)") as e:
        session.run(feeds)
    assert "new process" in one_line(e.value)


@pytest.mark.parametrize(
    ("said", "meaning"),
    [
        ("IPluginCreator not found for op ScatterElements, plugin version 1", "it holds a plug-in"),
        ("The engine plan file is generated on an incompatible device, expecting compute 9.0 got 8.9", "another GPU"),
        ("Serialization assertion magicTag == kMAGIC failed", "another version of TensorRT"),
        ("OutOfMemory: no more memory", "out of memory"),
        ("something new", "something new"),
    ],
)
def test_refusals_are_explained(said: str, meaning: str, trt: FakeTrt, tmp_path: Path) -> None:
    with pytest.raises(TargetError) as e:
        make(trt, tmp_path, STATIC, refusal=said)
    message = one_line(e.value)
    assert meaning in message
    assert said in message
    assert "a consequence of the first error" not in message
    assert message.endswith(": lmmprune build out")


def test_explanation_without_a_reason() -> None:
    assert explain("") == "no reason given"


def test_bfloat16_is_handed_over(trt: FakeTrt, tmp_path: Path) -> None:
    session = make(trt, tmp_path, GROWING.replace("float[", "bfloat16[").replace("to = 1", "to = 16"), RANGES)
    cache = session.upload(np.zeros((1, 0), ml_dtypes.bfloat16))
    for step in ((1, 2, 3), (300,)):
        cache = session.run({"input_ids": session.upload(np.array([step], np.int64)), "cache": cache})["next"]
    found = session.download(cache)
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found.astype(np.float32), row(1, 2, 3, 300))
    with pytest.raises(BundleError, match=r"'cache' of .* is bfloat16, not float16"):
        session.run(
            {
                "input_ids": session.upload(np.array([[1]], np.int64)),
                "cache": session.upload(np.zeros((1, 4), np.float16)),
            }
        )


def test_types_and_places_that_cannot_be_handed_over(trt: FakeTrt, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"'x' of .* is FP8, .*: export with --dtype float16"):
        make(trt, tmp_path, "g (float8e4m3fn[4] x) => (float8e4m3fn[4] y) { y = Identity (x) }")
    with pytest.raises(TargetError, match="wants 'x' on the host"):
        make(trt, tmp_path, STATIC, host=["x"])


def test_too_little_memory_says_how_much_and_for_what(tmp_path: Path) -> None:
    with fake_gpu(FakeCudart(total=300_000)) as trt:
        session = make(trt, tmp_path, STATIC)
        with pytest.raises(TargetError) as e:
            session.upload(np.zeros((1, 2**20), np.float32))
    assert one_line(e.value).startswith(
        f"Fake GPU is out of memory: an input of '{tmp_path / 'g.engine'}' needs 4.0 MiB, 0.3 MiB of 0.3 MiB are free: "
        "close what else uses the GPU"
    )


def test_pool_lends_a_buffer_once_and_frees_what_is_too_small() -> None:
    cuda = FakeCudart()
    with fake_gpu(cuda):
        pool = Pool(CudaDevice())
    first, second = pool.take("a", 8), pool.take("a", 8)
    assert first.address != second.address
    there = first.address
    del first
    assert pool.take("b", 8).address != there, "other purposes have buffers of their own"
    again = pool.take("a", 16)
    assert again.address == there
    del again
    blocks = len(cuda.blocks)
    large = pool.take("a", 200_000)
    assert len(cuda.blocks) == blocks, "the small idle one was freed"
    assert cuda.inside(large.address, 200_000)
    assert second.address in cuda.blocks


def test_outputs_share_a_buffer_until_the_last_is_dropped(trt: FakeTrt, tmp_path: Path) -> None:
    session = make(trt, tmp_path, STATIC)
    feeds = {"cache": session.upload(row(1, 2, 3, 4)), "x": session.upload(row(1, 1, 1, 1))}
    kept = session.run(feeds)["next"]  # y is dropped
    allocations = session.allocations
    other = session.run({**feeds, "x": session.upload(row(5, 5, 5, 5))})["next"]
    np.testing.assert_array_equal(session.download(kept), row(2, 3, 4, 5))
    np.testing.assert_array_equal(session.download(other), row(6, 7, 8, 9))
    assert session.allocations == allocations + 2, "a second buffer for outputs, a third for inputs"


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 10**6, 10**9 + 7])
def test_buffers_have_a_little_room_to_grow(size: int) -> None:
    assert size <= roomy(size) <= max(1.25 * size, size + 65_536)
    assert roomy(size) % 65_536 == 0
    assert roomy(size) > 0
