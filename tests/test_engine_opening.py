"""What stands between a bundle and its engines: driver, GPU, versions, checksums; each refusal is one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runtime_fixtures as fx
from edit_json import edit
from engine_fixtures import add_engines, fake_gpu, on_the_cpu, one_line
from fake_cuda import FakeCudart
from fake_trt import FakeTrt

from lmmprune.compiler.backends.cuda import CudaDevice
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.cli import main
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.errors import BundleError, InputError, LmmpruneError, TargetError


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    made = fx.make_bundle(tmp_path / "out", keep=4, target="tensorrt-rtx")
    add_engines(made)
    return made


def refusal(bundle: Bundle, kind: type[LmmpruneError], cuda: FakeCudart | None = None, version: str = "") -> str:
    """Return the one line with which the run-time refuses; nothing may have been handed to TensorRT."""
    cuda = cuda or FakeCudart()
    trt = FakeTrt(cuda, version or "1.7.1.116")
    with fake_gpu(cuda, trt), pytest.raises(kind) as e:
        Runtime(bundle)
    assert trt.deserialized == 0
    return one_line(e.value)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_tampered_engine_never_reaches_tensorrt(bundle: Bundle) -> None:
    for component in ("vision", "decoder"):
        flip(bundle.path / "engines" / "tensorrt-rtx-sm89" / f"{component}.engine")
    message = refusal(bundle, BundleError)
    assert "its checksum differs" in message
    assert message.endswith("--target tensorrt-rtx --arch sm89 --force")


def test_engine_of_another_version(bundle: Bundle) -> None:
    message = refusal(bundle, TargetError, version="1.8.0.5")
    assert "the vision engine was built by tensorrt_rtx 1.7.1.116, installed is 1.8.0.5, which can't" in message
    assert message.endswith(f"lmmprune build {bundle.path} --target tensorrt-rtx --component vision --force")


@pytest.mark.parametrize(("installed", "runs"), [("1.8.0.5", True), ("1.7.0.9", False), ("2.7.1.116", False)])
def test_engine_for_several_versions(bundle: Bundle, installed: str, runs: bool) -> None:
    add_engines(bundle, options={"version_compatible": True})
    if runs:
        cuda = FakeCudart()
        with fake_gpu(cuda, FakeTrt(cuda, installed)):
            assert Runtime(bundle).answer(fx.picture(1), "hi?", 2).text
    else:
        assert f"installed is {installed}, which can't run it" in refusal(bundle, TargetError, version=installed)


def test_engine_with_a_runtime_of_its_own(tmp_path: Path) -> None:
    bundle = fx.make_bundle(tmp_path / "out", keep=4, target="tensorrt-11")
    add_engines(bundle, target="tensorrt-11", options={"version_compatible": True}, host_code=True)
    with fake_gpu():
        assert Runtime(bundle).answer(fx.picture(1), "hi?", 2).text
    add_engines(bundle, target="tensorrt-11", host_code=True)
    with fake_gpu(), pytest.raises(TargetError, match="host code isn't allowed: lmmprune build"):
        Runtime(bundle)


def test_engine_without_weights_gets_them_from_its_graph(bundle: Bundle) -> None:
    add_engines(bundle, options={"strip_weights": True}, weights_from=".onnx")
    with fake_gpu():
        assert Runtime(bundle).answer(fx.picture(1), "hi?", 2).text
    add_engines(bundle, options={"strip_weights": True}, weights_from="decoder.onnx")
    with fake_gpu(), pytest.raises(TargetError) as e:
        Runtime(bundle)
    assert "doesn't take its weights from" in one_line(e.value)
    assert "vision.onnx': the names of the weights differ: lmmprune build" in str(e.value)


def test_engines_of_another_architecture(bundle: Bundle) -> None:
    message = refusal(bundle, BundleError, FakeCudart(capability=(9, 0)))
    assert "no engines for this GPU (Fake GPU, sm90); it has tensorrt-rtx-sm89: lmmprune build" in message
    assert message.endswith("--target tensorrt-rtx --arch sm90")
    shutil.copytree(bundle.path / "engines" / "tensorrt-rtx-sm89", bundle.path / "engines" / "tensorrt-rtx-sm90")
    message = refusal(bundle, TargetError, FakeCudart(capability=(9, 0)))
    assert "the vision engine is for sm89, this GPU (Fake GPU) is sm90: lmmprune build" in message


def test_no_engines_at_all(bundle: Bundle) -> None:
    shutil.rmtree(bundle.path / "engines")
    assert "it has none: lmmprune build" in refusal(bundle, BundleError)


def test_missing_component(bundle: Bundle) -> None:
    record = bundle.path / "engines" / "tensorrt-rtx-sm89" / "engine.json"
    edit(record, lambda rows: rows["components"].pop("decoder"))
    with fake_gpu(), pytest.raises(BundleError, match="has no decoder engine for tensorrt-rtx on sm89: lmmprune build"):
        Runtime(bundle)


def test_engine_of_another_graph(bundle: Bundle) -> None:
    folder = bundle.path / "engines" / "tensorrt-rtx-sm89"

    def exchange(rows: dict[str, Any]) -> None:
        both = rows["components"]
        for key in ("file", "bytes", "sha256"):
            both["decoder"][key] = both["vision"][key]

    edit(folder / "engine.json", exchange)
    with fake_gpu(), pytest.raises(BundleError, match=r"the inputs of .* aren't those of 'decoder.onnx' \(image_feat"):
        Runtime(bundle)


DRIVERS: dict[str, tuple[Callable[[FakeCudart], None], str]] = {
    "none": (lambda cuda: setattr(cuda, "driver", 0), "no NVIDIA driver is loaded"),
    "old": (
        lambda cuda: setattr(cuda, "driver", 12040),
        "serves CUDA up to 12.4, the installed cuda-bindings are for 13.0: update the driver, or pip install "
        "'cuda-bindings<13'",
    ),
    "no gpu": (
        lambda cuda: setattr(cuda, "cudaGetDeviceCount", lambda: (100, None)),
        "shows no GPU (is CUDA_VISIBLE_DEVICES set?)",
    ),
}


@pytest.mark.parametrize("case", DRIVERS)
def test_no_gpu_says_why_and_what_to_do(bundle: Bundle, case: str) -> None:
    breaks, reason = DRIVERS[case]
    cuda = FakeCudart()
    breaks(cuda)
    message = refusal(bundle, TargetError, cuda)
    assert reason in message
    assert "--target ort-cpu" in message
    assert "lmmprune build DIR --target tensorrt-rtx" in message


def test_the_real_bindings_without_a_driver_are_one_line() -> None:
    cuda = pytest.importorskip("cuda.bindings.runtime")
    if not int(cuda.cudaGetDeviceCount()[0]):
        pytest.skip("there is a GPU")
    with pytest.raises(TargetError, match=r"no NVIDIA driver is loaded|shows no GPU|update the driver"):
        CudaDevice()


def test_too_little_memory_for_the_engines(bundle: Bundle) -> None:
    with (
        fake_gpu(FakeCudart(total=1000)),
        pytest.raises(TargetError, match="what engines compute with needs"),
    ):
        Runtime(bundle)


def test_engines_of_another_target_are_taken_where_its_own_has_none(tmp_path: Path) -> None:
    bundle = fx.make_bundle(tmp_path / "out", keep=4, target="tensorrt-10.16")
    add_engines(bundle, target="tensorrt-11")
    with fake_gpu():
        assert Runtime(bundle).answer(fx.picture(1), "hi?", 3).text


def test_prompt_longer_than_the_profile(tmp_path: Path) -> None:
    bundle = fx.make_bundle(tmp_path / "out", keep=4, target="tensorrt-rtx")
    add_engines(bundle, max_prompt=40)
    with fake_gpu():
        runtime = Runtime(bundle)
        with pytest.raises(InputError) as e:
            _ = runtime.answer(fx.picture(1), "x" * 60, 3).text
        assert "'input_ids' is 1 x 83, the engine takes 1 x 1 to 1 x 40 (profile 'prefill')" in one_line(e.value)
        assert str(e.value).endswith("--component decoder --force --max-prompt 83")
        assert runtime.answer(fx.picture(1), "hi?", 3).text, "the next question is answered"


def test_copies_are_whole_whatever_their_size() -> None:
    with fake_gpu():
        device = CudaDevice()
    rng = np.random.default_rng(0)
    for size in (1, 1000, 300_000, 300_000, 3_000_000, 5):
        array = rng.standard_normal(size).astype(np.float32)
        block = device.allocate(array.nbytes, "a test")
        device.upload(block.address, array)
        expected = array.copy()
        array[:] = 0  # the caller may use its array again
        device.synchronize()
        other = device.allocate(array.nbytes, "a test")
        device.upload(other.address, array)  # and the page-locked stage, which copies both ways pass, holds zeros
        np.testing.assert_array_equal(device.download(block.address, (size,), array.dtype), expected)


def test_copies_that_fill_the_stage_do_not_overwrite_each_other() -> None:
    with fake_gpu():
        device = CudaDevice()
    arrays = [np.full(n, n % 251, np.uint8) for n in (700_000, 700_001, 5, 3_000_002, 700_003)]
    blocks = [device.allocate(array.nbytes, "a test") for array in arrays]
    for block, array in zip(blocks, arrays, strict=True):
        device.upload(block.address, array)
    for block, array in zip(blocks, arrays, strict=True):
        np.testing.assert_array_equal(device.download(block.address, array.shape, array.dtype), array)


def test_command_line(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    picture = fx.save_picture(bundle.path.parent / "p.png", 3, 5, 9, 15)
    arguments = ["run", str(bundle.path), "--image", str(picture), "--prompt", "hi?", "--max-new-tokens", "5", "--json"]
    expected = Runtime(on_the_cpu(bundle)).answer(fx.picture(3, 5, 9, 15), "hi?", 5)
    _ = expected.text
    with fake_gpu(), pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == expected.tokens
    flip(bundle.path / "engines" / "tensorrt-rtx-sm89" / "vision.engine")
    with fake_gpu(), pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("lmmprune: error: ")
    assert error.count("\n") == 1
