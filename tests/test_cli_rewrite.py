"""``lmmprune rewrite`` as the user meets it: what it prints and writes, and what it refuses in one line."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import foreign_towers as ft
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from pruned_towers import IN_DECODER

from lmmprune.compiler.cli import main
from lmmprune.compiler.onnx_files.write_graph import write_graph
from lmmprune.compiler.verify.reference import Cut, see
from lmmprune.errors import InputError

SIZE = ("--image-size", ft.SIDE)
EXAMPLE = Path(__file__).parents[1] / "examples/longest/longest.py"
Refusal = Callable[..., str]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ft.saved(tmp_path_factory.mktemp("clip"), ft.exported("clip"))


def called(*arguments: object) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["rewrite", *map(str, arguments)])
    assert caught.value.code == 0


def test_a_tower_from_file_to_file(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "pruned.onnx"
    called(clip, *SIZE, "--layer", -2, "--method", "cls", "--keep", 11, "-o", out)
    said = capsys.readouterr()
    assert "25 -> 11 visual tokens" in said.out
    assert "'last_hidden_state' [1, 12, 32] of layer 2 of 3, row 0 is CLS" in said.out
    assert said.err == "dropped the output 'pooler_output': it is computed behind the feature layer\n"
    assert [path.name for path in out.parent.iterdir()] == ["pruned.onnx"]
    model = onnx.load(out)
    onnx.checker.check_model(model, full_check=True)
    assert [output.name for output in model.graph.output] == ["last_hidden_state", "kept_indices"]
    assert model.opset_import[0].version == 23
    seen = see(ft.as_llava("clip", -2), "cls", {}, [Cut("vision_output", 11)], ft.pixels())
    found = ft.answers(model, ft.pixels())
    np.testing.assert_array_equal(found["kept_indices"], seen.kept["vision_output"])
    np.testing.assert_allclose(found["last_hidden_state"][:, 1:], seen.features, atol=1e-4)


def test_the_report_as_json(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.onnx"
    lowered = ("--target", "tensorrt-10.3", "--dtype", "float16")
    called(clip, *SIZE, "--batch", 2, "--method", "tome", "--ratio", 0.5, *lowered, "-o", out, "--json")
    said = capsys.readouterr()
    assert said.err == "the picture is read as float16, it was float32\n"
    report = json.loads(said.out)
    assert (report["tokens_before"], report["tokens_after"]) == (25, 13)
    assert [(row["site"], row["tokens_in"], row["tokens_out"]) for row in report["sites"]] == [
        ("vision_layer_0", 25, 21),
        ("vision_layer_1", 21, 17),
        ("vision_layer_2", 17, 13),
    ]
    assert report["features"] == {
        "output": "last_hidden_state",
        "shape": [2, 14, 32],
        "layer": 3,
        "layers": 3,
        "has_cls": True,
        "grid": [5, 5],
    }
    assert report["flops"]["after"] < report["flops"]["before"]
    assert report["nodes"]["before"] == len(onnx.load(clip).graph.node)
    assert report["nodes"]["after"] > report["nodes"]["canonical"]
    assert report["opset"] == {"before": 17, "after": 20}
    assert report["dtype"] == {"before": "float32", "after": "float16"}
    assert (report["method"], report["parameters"], report["dropped_outputs"]) == ("tome", {}, {})
    assert report["bytes"] == out.stat().st_size


def test_a_method_of_ones_own_and_its_options(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.onnx"
    named = ("--method-file", EXAMPLE, "--method", "longest", "--set", "p=1")
    called(clip, *SIZE, *named, "--keep", 9, "-o", out)
    before, found = ft.answers(clip.read_bytes(), ft.pixels()), ft.answers(out.read_bytes(), ft.pixels())
    lengths = np.abs(before["last_hidden_state"][0, 1:]).sum(axis=1)
    assert found["kept_indices"][0].tolist() == sorted(np.argsort(-lengths)[:9].tolist())


def test_a_graph_that_was_folded_by_a_simplifier(clip: Path, tmp_path: Path) -> None:
    """No Shape, no Gather of it: every Reshape has a constant target, as onnxsim leaves them."""
    folder = tmp_path / "simple"
    folder.mkdir()
    path = ft.saved(folder, ft.exported("clip", "eager", 17, dynamic=False))
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "folded.onnx")
    # That is a kernel's wish, which no simplifier has.
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"], disabled_optimizers=["MatMulAddFusion"])
    assert not [n for n in onnx.load(folder / "folded.onnx").graph.node if n.op_type in ("Shape", "Constant")]
    outs = []
    for source, sizes in ((clip, SIZE), (folder / "folded.onnx", ())):
        outs.append(tmp_path / f"{source.stem}.out.onnx")
        called(source, *sizes, "--keep", 9, "-o", outs[-1])
    first, second = (ft.answers(out.read_bytes(), ft.pixels()) for out in outs)
    np.testing.assert_array_equal(first["kept_indices"], second["kept_indices"])
    np.testing.assert_allclose(first["last_hidden_state"], second["last_hidden_state"], atol=1e-5)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.fixture
def refusal(refusal: Refusal, tmp_path: Path) -> Refusal:
    """Call ``rewrite`` with a mistake in it; return the one line that it says."""

    def call(source: object, *arguments: object, output: object = tmp_path / "out.onnx") -> str:
        return refusal("rewrite", source, "-o", output, *arguments)

    return call


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ratio", 0.5), "leaves the size of the picture open: give --image-size, in pixels, such as 336"),
        ((*SIZE, "--ratio", 0.5, "--method", "freeprune"), "no method 'freeprune'; did you mean 'freepruner'?"),
        ((*SIZE, "--ratio", 0.5, "--keep", 3), "--ratio and --keep exclude each other"),
        ((*SIZE, "--keep", 26), "--keep 26: the model has 25 visual tokens; give 1..25"),
        ((*SIZE, "--keep", 9, "--layer", 4), "--layer 4: the graph has 3 layers; give 1..3, or -3..-1"),
        ((*SIZE, "--keep", 9, "--layer", 0), "--layer 0: the graph has 3 layers; give 1..3, or -3..-1"),
        ((*SIZE, "--keep", 9, "--features", "last_hidden"), "no such output; did you mean 'last_hidden_state'?"),
        (
            (*SIZE, "--keep", 9, "--features", "pooler_output"),
            "looked for tokens in 'pooler_output', [B,25,C] or [B,26,C], behind the attention; found: last_hidden",
        ),
        ((*SIZE, "--keep", 9, "--method", "prumerge"), "is what the last one (of 3) makes: give --layer -2"),
        ((*SIZE, "--keep", 9, "--grid", "5"), "--grid 5: expected two numbers such as 24x24"),
        (
            (*SIZE, "--keep", 9, "--grid", "4x4"),
            "[B,16,C] or [B,17,C], behind the attention; found: last_hidden_state [1,26,32]",
        ),
        (("--image-size", "big", "--keep", 9), "--image-size big: expected a number, or two numbers such as 24x24"),
        ((*SIZE, "--keep", 9, "--target", "tensort-11"), "no target 'tensort-11'; did you mean 'tensorrt-11'?"),
        ((*SIZE, "--keep", 9, "--dtype", "bfloat16"), "--dtype bfloat16: target 'ort-cpu' takes float32, float16"),
    ],
)
def test_requests_that_dont_fit(arguments: tuple[object, ...], message: str, clip: Path, refusal: Refusal) -> None:
    assert message in refusal(clip, *arguments)


@pytest.mark.parametrize("name", IN_DECODER)
def test_methods_that_need_a_decoder(name: str, clip: Path, refusal: Refusal) -> None:
    # At nearly every ratio: a schedule that no decoder could have is no other message.
    for ratio in (0.1, 0.9):
        said = refusal(clip, *SIZE, "--ratio", ratio, "--method", name)
        assert f"method '{name}' cuts in the decoder (llm_" in said
        assert "where the question is, and this graph is a vision tower alone: use a method that" in said


def test_a_picture_of_another_size_than_the_towers(clip: Path, refusal: Refusal) -> None:
    found = refusal(clip, "--image-size", f"{2 * ft.SIDE}x{ft.SIDE}", "--keep", 9)
    assert "shape inference failed" in found
    assert f"(with pictures of {2 * ft.SIDE} x {ft.SIDE} pixels: is that the tower's size?)" in found


def test_sizes_that_the_graph_has_fixed(tmp_path: Path, refusal: Refusal) -> None:
    fixed = ft.saved(tmp_path, ft.exported("clip", "sdpa", 17, dynamic=False, batch=2))
    assert "--batch 3: the graph was exported for 2" in refusal(fixed, "--keep", 9, "--batch", 3)
    found = refusal(fixed, "--keep", 9, "--image-size", f"{ft.SIDE}x24")
    assert f"--image-size: 24 pixels wide, but the graph was exported for {ft.SIDE}" in found


@pytest.mark.parametrize("name", ["cls", "vispruner"])
def test_methods_that_need_cls_on_a_tower_without(name: str, tmp_path: Path, refusal: Refusal) -> None:
    source = ft.saved(tmp_path, ft.exported("siglip"))
    assert f"method '{name}' needs a CLS token" in refusal(source, *SIZE, "--keep", 9, "--method", name)


GRAPHS = {
    "a text model": (
        "(int64[batch,length] input_ids) => (float[batch,length] last_hidden_state)"
        " { last_hidden_state = Cast<to = 1>(input_ids) }",
        "looked for one input, a picture [B,3,height,width] of floats, found: input_ids",
    ),
    "two pictures": (
        "(float[1,3,4,4] a, float[1,3,4,4] b) => (float[1,3,4,4] c) { c = Add(a, b) }",
        "looked for one input, a picture [B,3,height,width] of floats, found: a [1,3,4,4]",
    ),
    "no attention": (
        "(float[1,3,4,4] x) => (float[1,3,4,4] y) { y = Softmax(x) }",
        "no attention in the graph: looked for MatMul(q, k^T), Softmax over [T,T], MatMul(., v), or Attention; found 1",
    ),
    "quantized": (
        "(float[1,3,4,4] x) => (uint8[1,3,4,4] y) <float s = {1}, uint8 z = {0}> { y = QuantizeLinear(x, s, z) }",
        "quantizes: prune the floating-point graph, then quantize",
    ),
    "pruned already": (
        "(float[1,3,4,4] x) => (float[1,3,4,4] kept_indices) { kept_indices = Neg(x) }",
        "the graph already has an output 'kept_indices': it is pruned; start from the unpruned graph",
    ),
    "control flow": (
        "(float[1,3,4,4] x) => (float[1,3,4,4] y) <float zero = {0}> {"
        " total = ReduceSum<keepdims = 0>(x) yes = Greater(total, zero)"
        " y = If (yes) <then_branch = a () => (float[1,3,4,4] p) { p = Neg(x) },"
        " else_branch = b () => (float[1,3,4,4] q) { q = Abs(x) }> }",
        "(If) is control flow, expected a graph without",
    ),
    "a runtime's operators": (
        "(float[1,3,4,4] x) => (float[1,3,4,4] y) { y = com.microsoft.Gelu(x) }",
        "is of type Gelu of 'com.microsoft', expected ONNX's own operators: export without a runtime's",
    ),
}


@pytest.mark.parametrize("kind", GRAPHS)
def test_graphs_that_are_no_tower(kind: str, tmp_path: Path, refusal: Refusal) -> None:
    body, message = GRAPHS[kind]
    text = f'<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> g {body}'
    path = tmp_path / "in.onnx"
    path.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    assert message in refusal(path, "--ratio", 0.5)


def test_an_opset_that_is_too_old(tmp_path: Path, refusal: Refusal) -> None:
    model = onnx.load_from_string(ft.exported("clip"))
    model.opset_import[0].version = 12
    path = tmp_path / "in.onnx"
    onnx.save(model, path)
    assert "the graph has opset 12: expected 13 or newer" in refusal(path, *SIZE, "--keep", 9)


def test_two_outputs_that_could_be_meant(tmp_path: Path, refusal: Refusal) -> None:
    model = onnx.load_from_string(ft.exported("clip"))
    for name, op_type in (("one", "Sigmoid"), ("two", "Tanh")):
        model.graph.node.append(onnx.helper.make_node(op_type, ["last_hidden_state"], [name], name=name))
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, [None, None, None]))
    path = tmp_path / "in.onnx"
    onnx.save(model, path)
    found = refusal(path, *SIZE, "--keep", 9)
    assert "several outputs could hold the features: one, two: say which, with --features" in found
    called(path, *SIZE, "--keep", 9, "--features", "two", "-o", tmp_path / "out.onnx")
    graph = onnx.load(tmp_path / "out.onnx").graph
    assert [output.name for output in graph.output] == ["pooler_output", "two", "kept_indices"]


def test_files_that_are_there_or_arent(clip: Path, tmp_path: Path, refusal: Refusal) -> None:
    assert "doesn't exist: give an ONNX file" in refusal(tmp_path / "none.onnx", "--keep", 9)
    (tmp_path / "text.onnx").write_text("no graph")
    assert "isn't an ONNX file that can be read" in refusal(tmp_path / "text.onnx", *SIZE, "--keep", 9)
    copy = tmp_path / "copy.onnx"
    shutil.copyfile(clip, copy)
    assert "is the graph that is read: give another name" in refusal(copy, "--keep", 9, "--force", output=copy)
    assert "exists: give another name, or --force to replace it" in refusal(clip, *SIZE, "--keep", 9, output=copy)
    assert "is a directory: give the name of the file" in refusal(clip, *SIZE, "--keep", 9, output=tmp_path)


# --- writing ---------------------------------------------------------------------------------------------------------


def graph() -> ir.Model:
    weights = np.arange(12, dtype=np.float32).reshape(3, 4)
    value = ir.Value(name="w", const_value=ir.Tensor(weights, name="w"), shape=ir.Shape([3, 4]))
    value.type = ir.TensorType(ir.DataType.FLOAT)
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 23]> g (float[2,3] x) => (float[2,3] y) { y = Neg(x) }'
    )
    model.graph.register_initializer(value)
    return model


@pytest.mark.parametrize("inline", [0, 1 << 20])
def test_large_weights_lie_beside_the_graph(inline: int, tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    written = write_graph(graph(), path, inline=inline)
    expected = ["out.onnx"] if inline else ["out.onnx", "out.onnx.data"]
    assert sorted(file.name for file in tmp_path.iterdir()) == expected
    assert written == sum(file.stat().st_size for file in tmp_path.iterdir())
    loaded = onnx.load(path)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(loaded.graph.initializer[0]).ravel(), np.arange(12))
    # Replaced by one that keeps its weights inside, no old weights are left.
    with pytest.raises(InputError, match="exists: give another name"):
        write_graph(graph(), path)
    write_graph(graph(), path, force=True)
    assert [file.name for file in tmp_path.iterdir()] == ["out.onnx"]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.onnx"
    write_graph(graph(), path)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ir, "save", full)
    with pytest.raises(InputError, match="is full"):
        write_graph(graph(), path, force=True)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("out.onnx", before)]


def test_outputs_that_are_one_computation(tmp_path: Path, refusal: Refusal) -> None:
    model = onnx.load_from_string(ft.exported("clip"))
    for name in ("one", "two"):
        model.graph.node.append(onnx.helper.make_node("Sigmoid", ["last_hidden_state"], [name], name=name))
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, [None, None, None]))
    path = tmp_path / "in.onnx"
    onnx.save(model, path)
    assert "one, two are the same computation: remove one" in refusal(path, *SIZE, "--keep", 9)
