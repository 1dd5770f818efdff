"""Weights streamed from a checkpoint in its own type: resumed, shared, checked, and refused in time."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from safetensors.numpy import load_file, save_file
from short_request import short_request

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.bundle.engines import SHARED
from lmmprune.compiler.export import preflight
from lmmprune.compiler.export.export import export
from lmmprune.compiler.export.trace import shared_trace
from lmmprune.compiler.runtime.open_picture import load_image
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.compiler.targets import machine
from lmmprune.compiler.verify.verify import verify
from lmmprune.errors import InputError, ModelError
from lmmprune.models.canonical import Canonical
from lmmprune.models.registry import tiny_llava_dir
from lmmprune.models.source import Source

WEIGHT = "language_model.model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return tiny-llava with float16 weights in two shards."""
    folder = tmp_path_factory.mktemp("half") / "model"
    shutil.copytree(tiny_llava_dir(), folder, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    tensors = {n: t.astype(np.float16) for n, t in load_file(tiny_llava_dir() / "model.safetensors").items()}
    places = {}
    for number, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file)
        places |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


@pytest.fixture(scope="module")
def traced() -> Callable[[Source], Canonical]:
    return shared_trace()


def answers(bundle: Path) -> list[str]:
    runtime = Runtime(Bundle.open(bundle))
    rows = (tiny_llava_dir() / "examples" / "examples.jsonl").read_text().splitlines()[:3]
    found = []
    for row in map(json.loads, rows):
        found.append(runtime.answer(load_image(tiny_llava_dir() / "examples" / row["image"]), row["prompt"], 4).text)
    return found


def stored(graph: Path) -> dict[str, ir.ExternalTensor]:
    tensors = {name: value.const_value for name, value in ir.load(graph).graph.initializers.items()}
    return {name: tensor for name, tensor in tensors.items() if isinstance(tensor, ir.ExternalTensor)}


def test_weights_arrive_bit_for_bit(half: Path, traced: Callable[[Source], Canonical], tmp_path: Path) -> None:
    export(short_request(model=str(half), output=tmp_path / "out", dtype="float16"), traced=traced)
    expected = load_file(half / "model-00001-of-00002.safetensors") | load_file(
        half / "model-00002-of-00002.safetensors"
    )
    found = {name.removesuffix(".float16"): t.numpy() for name, t in stored(tmp_path / "out" / "decoder.onnx").items()}
    names = {"model.language_model" + n.removeprefix("language_model.model"): n for n in expected}
    compared = [name for name in found if name.removesuffix(".T") in names and name.endswith(".T")]
    assert len(compared) == 4 * 7
    for name in compared:
        assert_array_equal(found[name], expected[names[name.removesuffix(".T")]].T)
    Bundle.open(tmp_path / "out").verify_checksums()


def test_a_killed_export_is_resumed_to_the_same_bytes(
    half: Path, traced: Callable[[Source], Canonical], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It kills itself, as nothing but the kernel can, behind 40 weights of the decoder."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    request = {"model": str(half), "int8": True, "calibration_samples": 1, "resume": True}
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from lmmprune.compiler.onnx_files import stream_weights, write_graphs\n"
        "from lmmprune.compiler.export.export import export\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from short_request import short_request\n"
        "ahead, stream, left = stream_weights.pieces_ahead, write_graphs.stream_weights, [10 ** 9]\n"
        "def stop(values):\n"
        "    for piece in ahead(values):\n"
        "        left[0] -= 1\n"
        "        if left[0] == 0:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        yield piece\n"
        "def begin(placed, file, **options):\n"
        "    if file.name == 'decoder.onnx.data':\n"
        "        left[0] = 40\n"
        "    return stream(placed, file, **options)\n"
        "stream_weights.pieces_ahead, write_graphs.stream_weights = stop, begin\n"
        f"export(short_request(output=Path(sys.argv[1]), **{request!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "out")], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert sorted(os.listdir(tmp_path)) == [".out.lock", ".out.partial"]
    written = tmp_path / ".out.partial" / "decoder.onnx.data"
    assert written.stat().st_size > 10**4
    # The last bytes that a killed machine wrote need not be right: they are read and hashed before they count.
    with written.open("r+b") as stream:
        stream.seek(-3, os.SEEK_END)
        stream.write(b"abc")
    export(short_request(output=tmp_path / "straight", **request), traced=traced)
    first: dict[str, int] = {}

    def note(what: str, done: int, of: int) -> None:
        first.setdefault(what, done)

    export(
        short_request(output=tmp_path / "out", **request),
        note,
        traced=traced,
    )
    total = (tmp_path / "out" / "decoder.onnx.data").stat().st_size
    assert first["write vision"] > 0.9 * (tmp_path / "out" / "vision.onnx.data").stat().st_size
    assert 0 < first["write decoder"] < total
    assert sorted(os.listdir(tmp_path)) == ["out", "straight"]
    for file in (tmp_path / "straight").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes(), file.name


def test_shared_weights_are_links_and_answer_the_same(half: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(half, model)
    export(short_request(model=str(model), output=tmp_path / "copied", dtype="float16", method="cls", ratio=0.5))
    report = export(
        short_request(
            model=str(model), output=tmp_path / "out", dtype="float16", method="cls", ratio=0.5, share_weights=True
        )
    )
    shards = sorted(model.glob("*.safetensors"))
    links = sorted((tmp_path / "out" / SHARED).iterdir())
    assert [link.stat().st_ino for link in links] == [shard.stat().st_ino for shard in shards]
    own = sum(entry.bytes for name, entry in report.manifest.files.items() if name.endswith(".data"))
    assert own < 0.01 * sum(shard.stat().st_size for shard in shards)
    checked = {check.name: check for check in verify(tmp_path / "out", samples=1, model=str(model))}
    assert all(check.passed for check in checked.values()), checked
    # Removing the checkpoint takes its names away, not the files; losing one in the bundle is said at opening.
    shutil.rmtree(model)
    assert answers(tmp_path / "out") == answers(tmp_path / "copied")
    Bundle.open(tmp_path / "out").verify_checksums()
    links[0].unlink()
    with pytest.raises(Exception, match="is missing from the bundle"):
        Bundle.open(tmp_path / "out")


def test_sharing_what_cannot_be_shared_is_refused(half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no weight in the type of the bundle"):
        export(short_request(model=str(half), output=tmp_path / "out", share_weights=True))

    with pytest.raises(InputError, match=r"--share-weights links .* leave one"):
        export(short_request(model=str(half), output=tmp_path / "out", share_weights=True, int8_weights_only=True))

    def other_disk(*arguments: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_disk)
    with pytest.raises(InputError, match=r"Invalid cross-device link.*checkpoint's own disk"):
        export(short_request(model=str(half), output=tmp_path / "out", dtype="float16", share_weights=True))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("error")  # a warning of NumPy's would be a second line
@pytest.mark.parametrize(
    "how",
    [
        pytest.param({}, id="copied"),
        pytest.param({"dtype": "float16", "share_weights": True}, id="shared"),
        pytest.param({"int8": True, "calibration_samples": 1}, id="int8"),
        pytest.param({"int8_weights_only": True}, id="weights only"),
    ],
)
def test_weights_that_are_no_numbers_are_counted_and_named(half: Path, how: dict[str, Any], tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(half, model)
    file = next(file for file in model.glob("*.safetensors") if WEIGHT in load_file(file))
    tensors = load_file(file)
    tensors[WEIGHT][0, :3] = [np.nan, np.inf, -np.inf]
    save_file(tensors, file)
    with pytest.raises(ModelError, match=rf"3 values in '{WEIGHT}' \(3\)"):
        export(short_request(model=str(model), output=tmp_path / "out", **how))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_values_beyond_float16_are_refused(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_llava_dir(), model)
    tensors = {name: tensor.astype(np.float32) for name, tensor in load_file(model / "model.safetensors").items()}
    tensors[WEIGHT][5, 7] = 1e6
    save_file(tensors, model / "model.safetensors")
    with (
        pytest.raises(ModelError, match=r"up_proj.*\(1 values\).*--dtype float32"),
        np.errstate(over="ignore"),
    ):
        export(short_request(model=str(model), output=tmp_path / "out", dtype="float16"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"disk_usage": 2**20}, r"needs about .*, the disk of .* has 1 MiB free", id="disk"),
        pytest.param({"free_memory": 2**29}, r"needs about 0\.9 GiB of memory, 0\.5 GiB are free", id="memory"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_starts(
    change: dict[str, int], message: str, half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "disk_usage" in change:
        usage = shutil.disk_usage(tmp_path)._replace(free=change["disk_usage"])
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    else:
        monkeypatch.setattr(machine, "free_memory", lambda: change["free_memory"])
    steps: list[str] = []
    with pytest.raises(InputError, match=message):
        export(short_request(model=str(half), output=tmp_path / "out"), lambda what, done, of: steps.append(what))
    assert steps == []
    assert list(tmp_path.iterdir()) == []


def test_what_is_needed_is_said_and_true(
    half: Path, tmp_path: Path, traced: Callable[[Source], Canonical], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(preflight, "NOTABLE_BYTES", 2**20)
    report = export(
        short_request(model=str(half), output=tmp_path / "out", dtype="float16"), traced=traced, announce=said.append
    )
    (line,) = said
    assert f"{half}: needs about" in line
    needs = needs_of(half, tmp_path, "float16", int8=False)
    size = sum(entry.bytes for entry in report.manifest.files.values())
    assert size <= needs.disk <= size + 2 * preflight._GRAPHS


def needs_of(model: Path, tmp_path: Path, dtype: str, *, int8: bool) -> preflight.Needs:
    source = _source(model)
    takes = preflight.Calibration()
    if int8:
        takes = preflight.calibration_needs(source, 2, scan=False, smooth=True)
    width = 32 if dtype == "float32" else 16
    bits = functools.partial(_bits, 8 if int8 else width, width)
    return preflight.needs(source, tmp_path / "x", dtype=dtype, bits=bits, shared=False, calibration=takes)


def _bits(matrix: int, table: int, name: str) -> int:
    return table if "embed" in name else matrix


def test_calibration_takes_disk_before_the_bundle_does(
    half: Path, tmp_path: Path, traced: Callable[[Source], Canonical], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its float32 graphs are several times what becomes of them."""
    monkeypatch.setattr(preflight, "_GRAPHS", 2**20)
    sizes: list[int] = []

    def look(*_: object) -> None:
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        sizes.append(sum(path.stat().st_size for path in files))

    request = short_request(model=str(half), output=tmp_path / "out", int8=True, calibration_samples=2)
    report = export(request, look, traced=traced)
    bundle = sum(entry.bytes for entry in report.manifest.files.values())
    peak = max(sizes)
    assert 2 * bundle < peak <= needs_of(half, tmp_path, "float32", int8=True).disk < 1.5 * peak


def test_telling_the_loss_takes_disk_before_the_bundle_does(
    half: Path, tmp_path: Path, traced: Callable[[Source], Canonical], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "_GRAPHS", 2**20)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (64, 64), "red").save(pictures / "one.png")
    sizes: list[int] = []

    def look(*_: object) -> None:
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        sizes.append(sum(path.stat().st_size for path in files))

    request = short_request(model=str(half), output=tmp_path / "out", ratio=0.5, calibration=pictures, dtype="float16")
    export(request, look, traced=traced)
    takes = preflight.judging_needs(_source(half))
    bits = functools.partial(_bits, 16, 16)
    needs = preflight.needs(_source(half), tmp_path / "x", dtype="float16", bits=bits, shared=False, calibration=takes)
    assert takes.disk > 0
    assert max(sizes) <= needs.disk + 2**16  # the picture


def test_the_scan_for_blocks_is_what_takes_the_memory(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "WHOLE_BYTES", 0)
    for scan, remedy in ((True, "leave out the policy 'auto'"), (False, "calibrate with fewer samples")):
        takes = preflight.calibration_needs(_source(half), 2, scan=scan, smooth=True)
        bits = functools.partial(_bits, 8, 32)
        found = preflight.needs(_source(half), half, dtype="float32", bits=bits, shared=False, calibration=takes)
        with pytest.raises(InputError, match=remedy):
            dataclasses.replace(found, memory_free=0).check(half)


def _source(model: Path) -> Source:
    from lmmprune.models.source import resolve

    return resolve(str(model))


def test_two_exports_to_one_place_do_not_mix(half: Path, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "theirs").touch()
    with (tmp_path / ".out.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is writing"):
            export(short_request(model=str(half), output=tmp_path / "out"))
    assert (tmp_path / ".out.partial" / "theirs").is_file()


def test_quantizing_in_blocks_is_quantizing() -> None:
    from lmmprune.passes.int8 import int8

    weight = np.random.default_rng(0).standard_normal((70, 50)).astype(np.float16)
    for axis in (0, 1):
        integers, scales = int8.quantize_in_blocks(weight, axis)
        assert_array_equal(integers, int8.quantize_weight(weight, axis))
        assert_array_equal(scales, int8.weight_scales(weight, axis))
    assert math.prod(weight.shape) < int8._BLOCK  # one block
    small = int8._BLOCK
    int8._BLOCK = 128
    try:
        for axis in (0, 1):
            assert_array_equal(int8.quantize_in_blocks(weight, axis)[0], int8.quantize_weight(weight, axis))
    finally:
        int8._BLOCK = small
