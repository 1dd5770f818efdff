import dataclasses
import hashlib
import json

import numpy as np
import onnx
import pytest
from runtime_fixtures import make_bundle

from lmmprune.compiler import build as build_module
from lmmprune.compiler import machine
from lmmprune.compiler.architectures import named_arch, present_or_named
from lmmprune.compiler.backends import tensorrt
from lmmprune.compiler.backends.engine import load_engine
from lmmprune.compiler.backends.origin import find_node
from lmmprune.compiler.build import build
from lmmprune.compiler.build_options import BuildOptions
from lmmprune.compiler.bundle import Bundle
from lmmprune.compiler.cli import main
from lmmprune.compiler.engines import open_engine, read_records
from lmmprune.compiler.manifest import FILENAME, Manifest, Precision
from lmmprune.compiler.profiles import Profile, decoder_profiles
from lmmprune.compiler.targets import resolve
from lmmprune.errors import BundleError, InputError, MissingExtraError, TargetError

RTX = resolve("tensorrt-rtx")
trt = pytest.importorskip("tensorrt_rtx")


def write(path, text, opset=23, **weights):
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> {text}')
    for index, node in enumerate(model.graph.node):
        node.name = f"n{index}_{node.op_type}"
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    onnx.save(model, path, save_as_external_data=bool(weights), location=f"{path.stem}.data", size_threshold=0)
    return path


ATTENTION = """
g (T[1,4,S,32] q, T[1,2,P,32] k, T[1,2,P,32] v, bool[1,1,S,P] mask) => (T[1,4,S,32] y) { y = Attention (q, k, v, mask) }
"""
PRUNE = """
g (T[1,144,64] x, T[1,144] score) => (T[1,72,64] y) <int64[1] k = {72}>
{ top, picked = TopK (score, k)  ascending, i = TopK <largest = 0> (picked, k)
  flat = Squeeze (ascending)  y = Gather <axis = 1> (x, flat) }
"""


@pytest.mark.parametrize(("dtype", "decomposed"), [("float", 1), ("float16", 0)])
def test_attention_is_decomposed_only_in_float32(tmp_path, dtype, decomposed):
    graph = write(tmp_path / "a.onnx", ATTENTION.replace("T[", f"{dtype}[").replace("S", "64").replace("P", "96"))
    said = []
    engine = tensorrt.build_engine(RTX, graph, arch="sm89", say=said.append)
    assert engine.decomposed == decomposed
    assert len(said) == decomposed
    assert engine.plan.nbytes > 1000


@pytest.mark.parametrize("arch", RTX.architectures)
def test_pruning_builds_for_every_architecture(tmp_path, arch):
    graph = write(tmp_path / "p.onnx", PRUNE.replace("T[", "float16["))
    assert tensorrt.build_engine(RTX, graph, arch=arch).plan.nbytes > 1000


def test_int8_matmul_takes_a_quarter_of_the_weights(tmp_path):
    text = """
    g (float[1,64,W] x) => (float[1,64,W] y)
    <float xs = {0.05}, int8 xz = {0}, float ws = {0.01}, int8 wz = {0}>
    { xq = QuantizeLinear (x, xs, xz)  xd = DequantizeLinear (xq, xs, xz)
      wd = DequantizeLinear (w, ws, wz)  y = MatMul (xd, wd) }
    """.replace("W]", "1024]")
    weight = np.random.default_rng(0).integers(-127, 128, (1024, 1024)).astype(np.int8)
    int8 = tensorrt.build_engine(RTX, write(tmp_path / "q.onnx", text, w=weight), arch="sm89")
    plain = "g (float[1,64,1024] x) => (float[1,64,1024] y) { y = MatMul (x, w) }"
    float32 = tensorrt.build_engine(RTX, write(tmp_path / "f.onnx", plain, w=weight.astype(np.float32)), arch="sm89")
    assert float32.plan.nbytes - int8.plan.nbytes > 2.5 * weight.size


def test_decode_profile_shares_the_weights(tmp_path):
    weight = np.ones((1024, 1024), np.float16)
    text = "g (float16[1,seq,1024] x) => (float16[1,seq,1024] y) { y = MatMul (x, w) }"
    graph = write(tmp_path / "m.onnx", text, w=weight)

    def profile(low, high):
        return Profile(name=f"{low}..{high}", shapes={"x": ((1, low, 1024), (1, low, 1024), (1, high, 1024))})

    shared = tensorrt.build_engine(RTX, graph, profiles=[profile(1, 256), profile(1, 2)], arch="sm89")
    assert shared.plan.nbytes < 1.5 * weight.nbytes


DECODER = """
g (T[1,seq,64] x, T[1,seq,16] cos, T[1,seq,16] sin, T[1,2,past,32] past_key, T[1,2,past,32] past_value)
  => (T[1,seq,64] y, T[1,2,total,32] key, T[1,2,total,32] value)
<int64[4] heads = {1,-1,2,32}, int64[3] merged = {1,-1,64}, int64 zero = {0}, int64 one = {1}, int64[1] rows = {1}>
{ h = RMSNormalization <axis = -1> (x, gain)
  qkv = MatMul (h, w)
  flat_q, flat_k, flat_v = Split <axis = -1, num_outputs = 3> (qkv)
  q3 = Reshape (flat_q, heads)  k3 = Reshape (flat_k, heads)  v3 = Reshape (flat_v, heads)
  q4 = Transpose <perm = [0,2,1,3]> (q3)  k4 = Transpose <perm = [0,2,1,3]> (k3)
  v4 = Transpose <perm = [0,2,1,3]> (v3)
  q = RotaryEmbedding (q4, cos, sin)  k = RotaryEmbedding (k4, cos, sin)
  key = Concat <axis = 2> (past_key, k)  value = Concat <axis = 2> (past_value, v4)
  past1 = Shape <start = 2, end = 3> (past_key)  total1 = Shape <start = 2, end = 3> (key)
  past0 = Squeeze (past1)  total0 = Squeeze (total1)
  query = Range (past0, total0, one)  keys = Range (zero, total0, one)
  column = Unsqueeze (query, rows)  mask2 = LessOrEqual (keys, column)
  mask3 = Unsqueeze (mask2, front)  mask = Unsqueeze (mask3, front)
  a = Attention (q, key, value, mask)
  a1 = Transpose <perm = [0,2,1,3]> (a)  y = Reshape (a1, merged) }
"""


@pytest.mark.parametrize(("name", "dtype"), [("float", np.float32), ("float16", np.float16)])
def test_decoder_layer_builds_for_an_empty_cache_and_for_a_step(tmp_path, name, dtype):
    weights = {
        "w": np.ones((64, 192), dtype),
        "gain": np.ones(64, dtype),
        "front": np.zeros(1, np.int64),
    }
    graph = write(tmp_path / "d.onnx", DECODER.replace("T[", f"{name}["), **weights)

    def profile(title, seq, past):
        rows = {
            **{"x": [(1, n, 64) for n in seq], "cos": [(1, n, 16) for n in seq], "sin": [(1, n, 16) for n in seq]},
            **{f"past_{part}": [(1, 2, n, 32) for n in past] for part in ("key", "value")},
        }
        return Profile(name=title, shapes={key: tuple(value) for key, value in rows.items()})

    both = [profile("prefill", (1, 100, 256), (0, 0, 0)), profile("decode", (1, 1, 2), (1, 100, 255))]
    engine = tensorrt.build_engine(RTX, graph, profiles=both, arch="sm89")
    assert engine.decomposed == (1 if name == "float" else 0)


def test_parser_error_names_the_node(tmp_path):
    text = "g (float[1,4] x, float16[4,4] w) => (float[1,4] y) { z = Relu (x)  y = MatMul (z, w) }"
    with pytest.raises(
        TargetError, match=r"can't take 'bad.onnx' at node 'n1_MatMul' \(MatMul\): .*same input types"
    ) as e:
        tensorrt.build_engine(RTX, write(tmp_path / "bad.onnx", text), arch="sm89")
    assert "\n" not in str(e.value)
    assert "cudaError" not in str(e.value)


def test_unsupported_operator_names_the_node(tmp_path):
    text = "g (uint8[4] x, uint8[4] s) => (uint8[4] y) { y = BitwiseAnd (x, s) }"
    with pytest.raises(TargetError, match=r"at node 'n0_BitwiseAnd' \(BitwiseAnd\)"):
        tensorrt.build_engine(RTX, write(tmp_path / "bad.onnx", text), arch="sm89")


def test_builder_error_names_the_node_of_a_value(tmp_path, monkeypatch):
    real = trt.Builder

    class Refusing(real):
        def __init__(self, log):
            real.__init__(self, log)
            self.log = log

        def build_serialized_network(self, network, config):
            # What TensorRT-RTX 1.7.1 said of a mask.
            self.log.log(trt.ILogger.ERROR, "Graph contains more than one op named mask [profile 1].1_iota")

    monkeypatch.setattr(trt, "Builder", Refusing)
    text = "g (float[4] x) => (float[4] y) { mask = Relu (x)  y = Neg (mask) }"
    with pytest.raises(TargetError) as e:
        tensorrt.build_engine(RTX, write(tmp_path / "m.onnx", text), arch="sm89")
    assert "can't compile 'm.onnx' at node 'n0_Relu': Graph contains" in str(e.value)
    assert "'build --verbose' shows what comes before it; another --dtype, or an export without" in str(e.value)


def test_workspace_that_is_too_small(tmp_path):
    graph = write(tmp_path / "a.onnx", ATTENTION.replace("T[", "float[").replace("S", "64").replace("P", "96"))
    with pytest.raises(TargetError, match=r"--workspace 0.000976562MiB is too small for it: give more, or leave it"):
        tensorrt.build_engine(RTX, graph, arch="sm89", options=BuildOptions(workspace=1024))


def test_nodes_are_found_by_what_they_are_called_or_give(tmp_path):
    text = "g (float[4] x) => (float[4] y) { shape = Relu (x)  mul_3 = Neg (shape)  y = Abs (mul_3) }"
    graph = write(tmp_path / "n.onnx", text)
    assert find_node(graph, "mul_3 fails in {ForeignNode[n2_Abs...]}") == "n2_Abs"
    assert find_node(graph, "shape: 4, near [mul_3]") == "n1_Neg"
    assert find_node(graph, "op named shape [profile 1].1_iota") == "n0_Relu"
    assert find_node(graph, "shape: {4, 1}") is None


def test_file_that_is_no_onnx(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"not a graph")
    with pytest.raises(TargetError, match=r"can't (read|take) '"):
        tensorrt.build_engine(RTX, tmp_path / "x.onnx", arch="sm89")


def test_profile_that_does_not_fit(tmp_path):
    graph = write(tmp_path / "r.onnx", "g (float[1,seq] x) => (float[1,seq] y) { y = Relu (x) }")
    wrong = Profile(name="prefill", shapes={"x": ((1, 4), (1, 2), (1, 8))})
    with pytest.raises(TargetError, match="profile"):
        tensorrt.build_engine(RTX, graph, profiles=[wrong], arch="sm89")


@pytest.mark.parametrize(("gpus", "found"), [([], "no NVIDIA driver answers"), (["535.10"], "driver is 535.10")])
@pytest.mark.parametrize("kind", ["Builder", "Runtime"])
def test_dead_driver(kind, gpus, found, tmp_path, monkeypatch):
    def dead(log):
        log.log(trt.ILogger.ERROR, "CUDA initialization failure with error: 35. Please check your CUDA installation")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(trt, kind, dead)
    here = tuple(machine.Gpu(name="RTX", arch="sm89", driver=driver, memory=None) for driver in gpus)
    monkeypatch.setattr(machine, "gpus", lambda: here)
    graph = write(tmp_path / "r.onnx", "g (float[4] x) => (float[4] y) { y = Relu (x) }")
    calls = {
        "Builder": lambda: tensorrt.build_engine(RTX, graph, arch="sm89"),
        "Runtime": lambda: load_engine(trt, graph, profile_names=(), rebuild="lmmprune build"),
    }
    with pytest.raises(TargetError) as e:
        calls[kind]()
    message = str(e.value)
    assert "\n" not in message
    assert f"can't start its {kind.lower()} (the NVIDIA driver is missing or too old for this TensorRT" in message
    assert found in message
    assert "update the NVIDIA driver or restart the machine; 'lmmprune doctor'" in message


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

    monkeypatch.setattr(tensorrt, "require", missing)
    with pytest.raises(MissingExtraError) as e:
        build(bundle.path, "tensorrt")
    message = str(e.value)
    assert "pip install 'lmmprune[gpu]' && lmmprune build out --target tensorrt-11" in message
    plan = f"lmmprune build {bundle.path} --target tensorrt --plan-only -o {bundle.path}-plan"
    assert message.endswith(f"write a folder that builds there with trtexec: {plan}")


def test_missing_gpu_says_what_to_run_on_the_board(tmp_path, monkeypatch):
    bundle = make_bundle(tmp_path / "out", dtype="float16", target="tensorrt-10.3")
    monkeypatch.setattr(tensorrt, "load", lambda target: trt)
    monkeypatch.setattr(machine, "gpus", tuple)
    with pytest.raises(TargetError) as e:
        build(bundle.path, "jetson-orin-jp6")
    message = str(e.value)
    assert "builds on the GPU that will run the engine (sm87), no NVIDIA GPU was found" in message
    assert "pip install lmmprune && lmmprune build out --target tensorrt-10.3 --arch sm87" in message
    assert f"--target jetson-orin-jp6 --plan-only -o {bundle.path}-plan" in message


def test_version_that_the_target_does_not_describe(monkeypatch):
    monkeypatch.setattr(tensorrt, "require", lambda module, extra: trt)
    with pytest.raises(TargetError, match=r"'tensorrt-10.3' needs TensorRT 10.3 up to .* 10.13, installed is 1\."):
        tensorrt.load(resolve("tensorrt-10.3"))


def test_module_that_does_not_load(monkeypatch):
    def broken(module, extra):
        raise ImportError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(tensorrt, "require", broken)
    with pytest.raises(TargetError, match=r"installed but doesn't load .libnvinfer"):
        tensorrt.load(resolve("tensorrt"))


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
