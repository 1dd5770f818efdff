import numpy as np
import onnx
import pytest

from lmmprune.compiler.backends.engine import load_engine
from lmmprune.compiler.build import compile_engine as tensorrt
from lmmprune.compiler.build.options import BuildOptions
from lmmprune.compiler.build.origin import find_node
from lmmprune.compiler.build.profiles import Profile
from lmmprune.compiler.targets import machine
from lmmprune.compiler.targets.targets import resolve
from lmmprune.errors import TargetError

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
    with pytest.raises(TargetError, match=r"a --workspace of 1,024 bytes is too small for it: give more, or leave it"):
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
