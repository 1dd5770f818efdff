"""Which kernel computed a layer, and why one stayed in floating point: on real exports and on graphs made for it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from exports import exported_again

from lmmprune.compiler.explain.explain import explain, graph_rows, steps
from lmmprune.compiler.explain.kernels import kind_of
from lmmprune.compiler.explain.layers import read_layers
from lmmprune.compiler.explain.profile_ort import ProfiledSession, read_profile
from lmmprune.compiler.explain.rows import Explanation, KernelRow, group_rows
from lmmprune.compiler.explain.tables import comparisons, reasons
from lmmprune.compiler.export.values import Int4
from lmmprune.errors import BundleError

Cli = Callable[..., tuple[int, str, str]]

PICTURE = Path(__file__).parents[1] / "models" / "tiny_llava" / "examples" / "scene_003.png"
ROLES = {"patch": 1, "qkv": 15, "out": 5, "up": 5, "down": 5, "projector": 2}  # of tiny-llava's tower
DECODER_ROLES = {"qkv": 12, "out": 4, "up": 8, "down": 4, "lm_head": 1}


@pytest.fixture(scope="module")
def explained() -> Explanation:
    paths = [exported_again(ratio=0.5)[0], exported_again(ratio=0.5, int8=True)[0]]
    said: list[str] = []
    explanation = explain(paths, PICTURE, "What digit is it?", rounds=3, on_step=said.append)
    assert len(said) == steps(2)
    return explanation


def counts(rows: tuple[KernelRow, ...], graph: str) -> dict[str, int]:
    roles = [row.role for row in rows if row.graph == graph]
    return {role: roles.count(role) for role in dict.fromkeys(roles)}


def test_every_product_has_a_kernel(explained: Explanation) -> None:
    for variant in explained.variants:
        assert all(row.kernel is not None for row in variant.rows)
        vision, decoder = (counts(variant.rows, graph) for graph in ("vision", "decoder"))
        assert {role: vision[role] for role in ROLES} == ROLES
        assert {role: decoder[role] for role in DECODER_ROLES} == DECODER_ROLES
        assert vision["attention"] == 5
        assert decoder["attention"] == 4
        for row in variant.rows:
            assert set(row.ms) == ({"vision"} if row.graph == "vision" else {"prefill", "decode"})
            assert all(value > 0 for value in row.ms.values())


def test_variants_name_their_weights_alike(explained: Explanation) -> None:
    first, second = ({row.key for row in variant.rows if row.role in ROLES} for variant in explained.variants)
    assert first == second
    assert "model.language_model.layers.0.mlp.up_proj.weight.T" in {row.key for row in explained.variants[1].rows}


def test_decoder_is_integer_and_what_is_not_has_a_reason(explained: Explanation) -> None:
    float32, int8 = explained.variants
    assert {row.reason_name for row in float32.rows} == {"not quantized", "attention", "score"}
    for row in int8.rows:
        if row.graph == "decoder" and row.role in DECODER_ROLES:
            assert (row.kind, row.reason) == ("integer", None)
        assert (row.reason is None) == (row.kind == "integer")
        assert row.reason_name != "not found"
    assert float32.phases["prefill"].integer_share == 0
    assert int8.phases["prefill"].integer_share == int8.phases["decode"].integer_share == 1
    assert 0 < int8.phases["prefill"].quantizing_ms < int8.phases["prefill"].total_ms


def test_alike_layers_are_one_group(explained: Explanation) -> None:
    groups = {group.name: group for group in group_rows(explained.variants)}
    group = groups["decoder 0-3 qkv"]
    assert group.count == 12
    rows = [row for row in explained.variants[0].rows if row.graph == "decoder" and row.role == "qkv"]
    assert group.variants[0] is not None
    assert group.variants[0].ms["decode"] == pytest.approx(sum(row.ms["decode"] for row in rows))


def test_tables_and_reasons(explained: Explanation) -> None:
    [(title, columns, rows)] = comparisons(explained)
    assert title.startswith("kernels of ")
    assert all(len(row) == len(columns) for row in rows)
    assert any("nothing in the graph is quantized" in line for line in reasons(explained))
    [(_, columns, rows)] = comparisons(Explanation(rounds=3, variants=explained.variants[:1]))
    assert all(len(row) == len(columns) for row in rows)
    assert json.loads(json.dumps(explained.as_dict()))["variants"][1]["phases"]["decode"]["integer_share"] == 1


# One product each: body, whether the kernel is an integer one, and the reason or the remark.
QDQ = "q = QuantizeLinear (x, xs, xz) d = DequantizeLinear (q, xs, xz) "
GRAPHS: dict[str, tuple[str, str | None, str | None]] = {
    "taken": (QDQ + "e = DequantizeLinear <axis=1> (w, ws, wz) y = MatMul (d, e)", "MatMulIntegerToFloat", None),
    "other weight float": (
        QDQ + "e = DequantizeLinear <axis=1> (w, ws, wz) h = MatMul (d, e) y = MatMul (h, v)",
        "MatMul",
        "no Q/DQ",
    ),
    "bias": (
        QDQ + "e = DequantizeLinear <axis=1> (w, ws, wz) m = MatMul (d, e) y = Add (m, b)",
        "Gemm",
        "bias",
    ),
    "weight behind a transpose": (
        QDQ + "e = DequantizeLinear <axis=0> (w, ws, wz) t = Transpose (e) y = MatMul (d, t)",
        "FusedMatMul",
        "not fused",
    ),
    "weight only": ("e = DequantizeLinear <axis=1> (w, ws, wz) y = MatMul (x, e)", "MatMulNBits", None),
    "dynamic": (
        "q, s, z = DynamicQuantizeLinear (x) p = MatMulInteger (q, w, z, wz) c = Cast <to=1> (p) k = Mul (s, ws)"
        " y = Mul (c, k)",
        "DynamicQuantizeMatMul",
        None,
    ),
    "no weight": ("t = Transpose <perm = [0, 2, 1]> (x) y = MatMul (x, t)", "FusedMatMul", "no weight"),
}


def graph_of(folder: Path, body: str, activation: type = np.uint8, shape: str = "1,5,8", **arrays: Any) -> Path:
    text = f'<ir_version: 10, opset_import: ["" : 21]> g (float[{shape}] x) => (float y) {{ {body} }}'
    model = onnx.parser.parse_model(text)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    for index, node in enumerate(model.graph.node):
        node.name = f"n{index}_{node.op_type}"
    rng = np.random.default_rng(0)
    values: dict[str, Any] = {
        "xs": np.float32(0.1),
        "xz": activation(0),
        "w": rng.integers(-9, 9, (8, 8)).astype(np.int8),
        "ws": np.full(8, 0.1, np.float32),
        "wz": np.zeros(8, np.int8),
        "v": rng.standard_normal((8, 8)).astype(np.float32),
        "b": np.ones(8, np.float32),
        **arrays,
    }
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in values.items() if name in used
    )
    onnx.save(model, folder / "graph.onnx")
    return folder / "graph.onnx"


def rows_of(path: Path, shape: tuple[int, ...] = (1, 5, 8)) -> list[KernelRow]:
    with ProfiledSession(path) as session:
        session.run({"x": np.ones(shape, np.float32)}, None)
        session.run({"x": np.ones(shape, np.float32)}, "vision")
        return graph_rows("vision", path, session)[0]


@pytest.mark.parametrize("case", GRAPHS)
def test_reason(case: str, tmp_path: Path) -> None:
    body, kernel, reason = GRAPHS[case]
    row = rows_of(graph_of(tmp_path, body))[-1]
    assert (row.kernel, row.reason_name, row.remark) == (kernel, reason, None)
    assert row.ms["vision"] > 0


def test_signed_activation_is_remarked(tmp_path: Path) -> None:
    [row] = rows_of(graph_of(tmp_path, GRAPHS["taken"][0], np.int8))
    assert (row.kernel, row.reason) == ("MatMulIntegerToFloat", None)
    assert row.remark is not None
    assert "U8" in row.remark


def test_conv_without_quantized_output(tmp_path: Path) -> None:
    body = QDQ + "e = DequantizeLinear <axis=0> (w, ws, wz) y = Conv (d, e)"
    weight = np.ones((8, 3, 2, 2), np.int8)
    [row] = rows_of(graph_of(tmp_path, body, shape="1,3,6,6", w=weight), (1, 3, 6, 6))
    assert (row.kind, row.reason_name) == ("float", "output")
    taken = body.replace("y =", "c =") + " r = QuantizeLinear (c, xs, xz) y = DequantizeLinear (r, xs, xz)"
    [row] = rows_of(graph_of(tmp_path, taken, shape="1,3,6,6", w=weight), (1, 3, 6, 6))
    assert (row.kernel, row.role) == ("QLinearConv", "patch")


def test_shared_weight_is_told_by_the_output(tmp_path: Path) -> None:
    rows = rows_of(graph_of(tmp_path, "h = MatMul (x, v) r = Relu (h) y = MatMul (r, v)"))
    assert [row.kernel for row in rows] == ["MatMul", "MatMul"]
    assert all(row.ms["vision"] > 0 for row in rows)


def test_kind_of_weights_only_kernel() -> None:
    assert kind_of("MatMulNBits", {"accuracy_level": 4}) == "integer"
    assert kind_of("MatMulNBits", {"accuracy_level": 1}) == kind_of("MatMulNBits", {}) == "float"


def test_profile_is_read_by_phase() -> None:
    def event(name: str, ts: int, dur: int, op: str = "MatMul") -> dict[str, Any]:
        return {"cat": "Node", "name": f"{name}_kernel_time", "ts": ts, "dur": dur, "args": {"op_name": op}}

    runs = [{"cat": "Session", "name": "model_run", "ts": ts, "dur": 90} for ts in (100, 200, 300, 400)]
    nodes = [event("a", 110, 1000), event("a", 210, 2000), event("q", 220, 500, "QuantizeLinear")]
    nodes += [event("a", 310, 4000), event("a", 410, 4000)]
    times = read_profile([*nodes, *runs], [None, "prefill", "prefill", "decode"])
    assert times["prefill"].nodes == {"a": 3.0, "q": 0.5}
    assert times["prefill"].total == 3.25
    assert times["prefill"].quantizing == 0.25
    assert times["decode"].total == 4.0


def test_bench_alone_needs_no_onnx_ir() -> None:
    modules = "lmmprune.compiler.explain.tables, lmmprune.compiler.explain.explain, lmmprune.compiler.build.build"
    code = f"import sys, {modules}; sys.exit('onnx_ir' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_graph_that_does_not_load(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match="can't load"):
        ProfiledSession(tmp_path / "bad.onnx")


def test_bench_explains(cli: Cli) -> None:
    paths = exported_again(ratio=0.5)[0], exported_again(ratio=0.5, int8=True)[0]
    arguments = ("--image", PICTURE, "--prompt", "hi", "--rounds", 2, "--new-tokens", 2, "--no-memory", "--explain")
    code, out, _ = cli("bench", *paths, *arguments)
    assert code == 0
    assert "decoder 0-3 qkv" in out
    assert "MatMulIntegerToFloat" in out
    code, out, _ = cli("bench", paths[1], *arguments, "--json")
    [variant] = json.loads(out)["kernels"]["variants"]
    assert code == 0
    assert {row["key"] for row in variant["rows"]} >= {"lm_head.weight.T"}


def test_other_targets_are_refused_before_measuring(cli: Cli) -> None:
    path = exported_again(target="tensorrt-rtx")[0]
    code, _, err = cli("bench", path, "--image", PICTURE, "--prompt", "hi", "--explain")
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert "--target ort-cpu" in err


def test_weights_of_four_bits() -> None:
    path, _ = exported_again(ratio=0.5, int4=Int4(group=64))
    layers = read_layers(path / "decoder.onnx")
    assert Counter(layer.role for layer in layers if layer.role != "attention") == DECODER_ROLES
    plain = read_layers(exported_again(ratio=0.5)[0] / "decoder.onnx")
    assert [layer.key for layer in layers] == [layer.key for layer in plain]
    found = explain([path], PICTURE, "What digit is it?", rounds=3)
    inside = [row for row in found.variants[0].rows if row.graph == "decoder" and row.role != "attention"]
    assert {(row.kernel, row.kind) for row in inside} == {("MatMulNBits", "integer")}
