"""Engines of a bundle: their records, what is kept or refused, and the command."""

import dataclasses
import hashlib
import json

import onnx
import pytest
from runtime_fixtures import make_bundle

from lmmprune.compiler.backends import load_tensorrt
from lmmprune.compiler.build import build as build_module
from lmmprune.compiler.build.architectures import named_arch, present_or_named
from lmmprune.compiler.build.build import build
from lmmprune.compiler.build.profiles import decoder_profiles
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.bundle.engines import open_engine, read_records
from lmmprune.compiler.bundle.manifest import FILENAME, Manifest, Precision
from lmmprune.compiler.cli import main
from lmmprune.compiler.targets import machine
from lmmprune.compiler.targets.targets import resolve
from lmmprune.errors import BundleError, InputError, MissingExtraError, TargetError

RTX = resolve("tensorrt-rtx")
trt = pytest.importorskip("tensorrt_rtx")


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path / "out", keep=8, dtype="float16", target="tensorrt-rtx")


def test_bundle_gets_engines_with_their_record(bundle):
    said = []
    built = build(bundle.path, "rtx", arch="sm86", say=said.append)
    folder = bundle.path / "engines" / "tensorrt-rtx-sm86"
    assert {path.name for path in folder.iterdir()} == {"vision.engine", "decoder.engine", "engine.json"}
    for one in built:
        record, data = one.record, one.path.read_bytes()
        assert one.fresh
        assert (record.bytes, record.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert (record.builder, record.version) == ("tensorrt_rtx", trt.__version__)
        assert (record.dtype, record.arch) == ("float16", "sm86")
        assert read_records(folder)[record.component] == record
    decoder = built[1].record
    assert set(decoder.source) == {"decoder.onnx", "decoder.data"}
    assert list(decoder.profiles) == ["prefill", "decode"]
    assert decoder.profiles["prefill"]["past_key_0"][2] == [1, 2, 0, 4]
    assert decoder.profiles["decode"]["input_ids"] == [[1, 1], [1, 1], [1, 2]]
    Bundle.open(bundle.path).verify_checksums()


def test_second_build_keeps_what_is_up_to_date(bundle):
    build(bundle.path, "rtx", arch="sm86", components=["vision"])
    assert [one.fresh for one in build(bundle.path, "rtx", arch="sm86", components=["vision"])] == [False]
    assert [one.fresh for one in build(bundle.path, "rtx", arch="sm86", components=["vision"], force=True)] == [True]


def test_changed_graph_makes_the_engine_stale(bundle):
    build(bundle.path, "rtx", arch="sm86", components=["vision"])
    manifest = Manifest.load(bundle.path / FILENAME)
    files = {**manifest.files}
    graph = onnx.load(bundle.path / "vision.onnx")
    graph.doc_string = "exported again"
    onnx.save(graph, bundle.path / "vision.onnx")
    data = (bundle.path / "vision.onnx").read_bytes()
    files["vision.onnx"] = dataclasses.replace(
        files["vision.onnx"], bytes=len(data), sha256=hashlib.sha256(data).hexdigest()
    )
    (bundle.path / FILENAME).write_text(dataclasses.replace(manifest, files=files).to_json())
    with pytest.raises(BundleError, match=r"stale \(vision.onnx changed after the engine was built\): lmmprune build"):
        open_engine(Bundle.open(bundle.path), "tensorrt-rtx", "sm86", "vision")
    said = []
    assert build(bundle.path, "rtx", arch="sm86", components=["vision"], say=said.append)[0].fresh
    assert any("stale (vision.onnx changed" in line for line in said)


def test_tampered_engine_is_refused(bundle):
    path = build(bundle.path, "rtx", arch="sm86", components=["vision"])[0].path
    assert open_engine(bundle, "tensorrt-rtx", "sm86", "vision") == path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match="its checksum differs"):
        open_engine(bundle, "tensorrt-rtx", "sm86", "vision")
    with pytest.raises(BundleError, match="has no decoder engine for tensorrt-rtx on sm86"):
        open_engine(bundle, "tensorrt-rtx", "sm86", "decoder")
    said = []
    again = build(bundle.path, "rtx", arch="sm86", components=["vision"], say=said.append)[0]
    assert again.fresh
    assert "its file is missing or damaged" in " ".join(said)
    assert open_engine(bundle, "tensorrt-rtx", "sm86", "vision") == again.path
    assert not path.exists(), "the new one has another name, the old one is gone"


def test_failed_write_leaves_nothing_behind(bundle, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        build(bundle.path, "rtx", arch="sm86", components=["vision"])
    assert list((bundle.path / "engines" / "tensorrt-rtx-sm86").iterdir()) == []


def test_unknown_architecture(bundle):
    with pytest.raises(TargetError, match=r"can't build for 'sm98'; did you mean 'sm89'\?"):
        build(bundle.path, "rtx", arch="sm98")
    known = "sm120, sm121, sm75, sm80, sm86, sm89"
    with pytest.raises(TargetError, match=f"can't build for 'banana'; known: {known}$"):
        build(bundle.path, "rtx", arch="banana")
    with pytest.raises(TargetError) as e:
        build(bundle.path, "rtx", arch="sm87")
    assert "can't build for 'sm87', a Jetson, which builds with its own TensorRT: export for the board" in str(e.value)
    assert "--target jetson-orin-jp6 or jetson-orin-jp7.2" in str(e.value)
    assert "lmmprune build" not in str(e.value)


def test_architecture_of_plain_tensorrt(bundle, tmp_path):
    with pytest.raises(TargetError, match=r"'tensorrt-11' can't build for 'banana'; known: .*sm90$"):
        build(bundle.path, "tensorrt", arch="banana")
    with pytest.raises(TargetError, match=r"'tensorrt-11' can't build for 'sm_89'; did you mean 'sm89'\?$"):
        build(bundle.path, "tensorrt", arch="sm_89")
    board = make_bundle(tmp_path / "board", dtype="float16", target="tensorrt-10.3")
    with pytest.raises(TargetError, match="'jetson-orin-jp6' has sm87, --arch is 'sm89': leave --arch out, or take"):
        build(board.path, "jetson-orin-jp6", arch="sm89")


def test_gpu_that_is_here_and_newer_than_the_list(bundle, monkeypatch):
    here = machine.Gpu(name="new", arch="sm130", driver=None, memory=None)
    monkeypatch.setattr(machine, "gpus", lambda: (here,))
    for arch in ("sm130", None):
        assert present_or_named(RTX, named_arch(RTX, "rtx", arch)) == "sm130"


def test_architecture_must_be_named_without_a_gpu(bundle, monkeypatch):
    monkeypatch.setattr(machine, "gpus", tuple)
    with pytest.raises(TargetError, match=r"no GPU was found, so name one with --arch: sm75, .* sm121$"):
        build(bundle.path, "rtx")


def test_unknown_component_and_prompt_limits(bundle):
    with pytest.raises(InputError, match=r"no component 'visoin'; did you mean 'vision'\?"):
        build(bundle.path, "rtx", arch="sm89", components=["visoin"])
    with pytest.raises(InputError, match="--max-prompt 500 must be more than the image's 8 tokens and at most"):
        build(bundle.path, "rtx", arch="sm89", max_prompt=500)


def test_missing_tensorrt_says_what_to_run_on_the_target(bundle, monkeypatch):
    def missing(module, extra):
        raise MissingExtraError(f"this needs the package '{module}'")

    monkeypatch.setattr(load_tensorrt, "require", missing)
    with pytest.raises(MissingExtraError) as e:
        build(bundle.path, "tensorrt")
    message = str(e.value)
    assert "pip install 'lmmprune[gpu]' && lmmprune build out --target tensorrt-11" in message
    plan = f"lmmprune build {bundle.path} --target tensorrt --plan-only -o {bundle.path}-plan"
    assert message.endswith(f"write a folder that builds there with trtexec: {plan}")


def test_missing_gpu_says_what_to_run_on_the_board(tmp_path, monkeypatch):
    bundle = make_bundle(tmp_path / "out", dtype="float16", target="tensorrt-10.3")
    monkeypatch.setattr(load_tensorrt, "load", lambda target: trt)
    monkeypatch.setattr(machine, "gpus", tuple)
    with pytest.raises(TargetError) as e:
        build(bundle.path, "jetson-orin-jp6")
    message = str(e.value)
    assert message == (
        "engines for a Jetson (jetson-orin-jp6) are built on the board itself, and this machine isn't one: make a "
        f"folder to copy there, with the steps: lmmprune deploy {bundle.path} --for jetson-orin-jp6 -o "
        f"{bundle.path}-jetson-orin-jp6 -- or, for trtexec alone, without Python: lmmprune build {bundle.path} "
        f"--target jetson-orin-jp6 --plan-only -o {bundle.path}-plan"
    )


@pytest.mark.parametrize(
    ("name", "arch"), [("jetson-orin-jp6", None), ("tensorrt-10.3", "sm87"), ("tensorrt-10.3", None)]
)
def test_a_pc_without_tensorrt_is_told_of_the_boards_folder_and_no_package(tmp_path, monkeypatch, name, arch):
    def missing(module, extra):
        raise MissingExtraError(
            f"this needs the package '{module}', which isn't installed: pip install 'lmmprune[gpu]'"
        )

    bundle = make_bundle(tmp_path / "out", dtype="float16", target="tensorrt-10.3")
    monkeypatch.setattr(load_tensorrt, "require", missing)
    monkeypatch.setattr(machine, "gpus", tuple)
    with pytest.raises(TargetError, match=r"lmmprune deploy .* --for jetson-orin-jp6 -o") as e:
        build(bundle.path, name, arch=arch)
    assert "pip install" not in str(e.value)
    # Beside a PC's GPU, a plain name may mean that one: both are told.
    monkeypatch.setattr(machine, "gpus", lambda: (machine.Gpu(name="x", arch="sm89", driver=None, memory=None),))
    with pytest.raises(MissingExtraError, match=r"pip install 'lmmprune\[gpu\]' && .* for a Jetson: lmmprune deploy "):
        build(bundle.path, "tensorrt-10.3")


def test_a_jetson_without_the_module_is_told_of_jetpack(tmp_path, monkeypatch):
    def missing(module, extra):
        raise MissingExtraError(
            f"this needs the package '{module}', which isn't installed: pip install 'lmmprune[gpu]'"
        )

    bundle = make_bundle(tmp_path / "out", dtype="float16", target="tensorrt-10.3")
    monkeypatch.setattr(load_tensorrt, "require", missing)
    orin = machine.Gpu(name="Orin", arch="sm87", driver=None, memory=None)
    monkeypatch.setattr(machine, "gpus", lambda: (orin,))
    with pytest.raises(MissingExtraError, match=r"isn't installed; on a Jetson, .* --system-site-packages") as e:
        build(bundle.path, "jetson-orin-jp6")
    assert "pip install" not in str(e.value)


def test_version_that_the_target_does_not_describe(monkeypatch):
    monkeypatch.setattr(load_tensorrt, "require", lambda module, extra: trt)
    with pytest.raises(TargetError, match=r"'tensorrt-10.3' needs TensorRT 10.3 up to .* 10.13, installed is 1\."):
        load_tensorrt.load(resolve("tensorrt-10.3"))


def test_module_that_does_not_load(monkeypatch):
    def broken(module, extra):
        raise ImportError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(load_tensorrt, "require", broken)
    with pytest.raises(TargetError, match=r"installed but doesn't load .libnvinfer"):
        load_tensorrt.load(resolve("tensorrt"))


def test_bundle_of_another_int8_scheme(tmp_path):
    bundle = make_bundle(tmp_path / "out", keep=8, precision=Precision(dtype="float32", int8="u8s8"))
    with pytest.raises(TargetError) as e:
        build(bundle.path, "rtx", arch="sm89")
    assert "quantized as u8s8, the target takes s8s8" in str(e.value)
    again = (
        "lmmprune export --model synthetic --weights dummy --method brightest --keep 8 --positions contiguous --int8 "
        f"--target tensorrt-rtx -o {bundle.path}-tensorrt-rtx"
    )
    assert str(e.value).endswith(again)


def test_unquantized_ort_bundle_builds_where_its_operators_are_taken(tmp_path):
    bundle = make_bundle(tmp_path / "out")
    build_module.check_suits(bundle, RTX)
    with pytest.raises(TargetError, match=r"holds Attention, .*, which the target.*; export it again"):
        build_module.check_suits(bundle, resolve("tensorrt-10.3"))
    with pytest.raises(TargetError, match="needs no build, ONNX Runtime reads the graphs as they are: lmmprune run"):
        build_module.check_suits(bundle, resolve("ort-cpu"))


def test_profiles_of_tensorrt_fix_the_decode_step(bundle):
    prefill, decode = decoder_profiles(bundle.manifest, resolve("tensorrt"), max_prompt=40)
    assert prefill.shapes["input_ids"] == ((1, 1), (1, 40), (1, 40))
    assert decode.shapes["input_ids"] == ((1, 1), (1, 1), (1, 1))
    assert decode.shapes["past_value_1"] == ((1, 2, 1, 4), (1, 2, 40, 4), (1, 2, 127, 4))


def test_command_line(bundle, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["build", str(bundle.path), "--arch", "sm89", "--json"])
    assert stop.value.code == 0
    printed = capsys.readouterr()
    assert [row["component"] for row in json.loads(printed.out)["engines"]] == ["vision", "decoder"]
    assert "building for tensorrt-rtx on sm89" in printed.err
    with pytest.raises(SystemExit) as stop:
        main(["build", str(bundle.path), "--target", "ort-cpu"])
    assert stop.value.code == 2
