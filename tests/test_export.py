"""The main job on the trained small model: parity with transformers, shapes, precision, bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from exports import exported, exported_again
from short_request import short_request

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.data.calibration import load_calibration
from lmmprune.compiler.export.choices import positions_of
from lmmprune.compiler.export.export import export
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.errors import InputError, LmmpruneError, ModelError, TargetError
from lmmprune.models.registry import tiny_llava_dir
from lmmprune.models.source import resolve
from lmmprune.passes.methods import METHODS


def test_unpruned_answers_equal_transformers_generate_token_for_token() -> None:
    import torch
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    path, _ = exported()
    runtime = Runtime(Bundle.open(path))
    model = LlavaForConditionalGeneration.from_pretrained(tiny_llava_dir(), dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(tiny_llava_dir())
    for sample in load_calibration(resolve("tiny-llava"), None, 12).samples:
        answer = runtime.answer(sample.image, sample.prompt, 16)
        _ = answer.text
        text = f"USER: <image>\n{sample.prompt} ASSISTANT:"
        inputs = processor(images=sample.image, text=text, return_tensors="pt")
        with torch.no_grad():
            whole = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0].tolist()
        wanted = whole[inputs["input_ids"].shape[1] :]
        stripped = [token for token in wanted if token not in runtime.bundle.manifest.prompt.eos_token_ids]
        assert list(answer.tokens)[: len(stripped)] == stripped
        assert len(answer.tokens) - len(stripped) in (0, 1)


@pytest.mark.parametrize("options", [{"ratio": 0.5}, {"ratio": 0.5, "int8": True}], ids=["float", "int8"])
def test_every_dimension_of_the_vision_graph_is_a_number(options: dict[str, object]) -> None:
    path, _ = exported(**options)
    model = onnx.shape_inference.infer_shapes(onnx.load(path / "vision.onnx"), strict_mode=True, data_prop=True)
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    named = {value.name for value in values}
    assert {output for node in model.graph.node for output in node.output} <= named
    for value in values:
        dims = value.type.tensor_type.shape.dim
        assert all(dim.HasField("dim_value") for dim in dims), value.name
    assert [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim] == [1, 72, 128]


def test_the_unused_layer_and_head_are_gone() -> None:
    path, _ = exported()
    model = onnx.load(path / "vision.onnx", load_external_data=False)
    names = [tensor.name for tensor in model.graph.initializer]
    assert sum(node.op_type == "Attention" for node in model.graph.node) == 5
    assert not [name for name in names if "layers.5." in name or "post_layernorm" in name]


def test_int8_weights_are_integers_and_scores_are_not_quantized() -> None:
    path, report = exported(ratio=0.5, int8=True)
    for part in ("vision", "decoder"):
        model = onnx.load(path / f"{part}.onnx", load_external_data=False)
        producers = {output: node for node in model.graph.node for output in node.output}
        initializers = {tensor.name for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type not in {"MatMul", "Gemm", "Conv"}:
                continue
            if node.name.startswith("lmmprune/"):
                assert all(producers.get(i) is None or producers[i].op_type != "DequantizeLinear" for i in node.input)
            else:
                assert not set(node.input[:2]) & initializers, node.name
                assert [producers[i].op_type for i in node.input[:2]] == ["DequantizeLinear"] * 2, node.name
    assert report.manifest.precision.int8 == "u8s8"
    record = dict(report.manifest.precision.calibration or {})
    assert [record.pop(part)["float"] for part in ("vision", "decoder")] == [[], []]
    assert record == {"source": "tiny-llava's training scenes", "samples": 32, "method": "minmax", "policy": "all"}
    small = sum(entry.bytes for name, entry in report.manifest.files.items() if name.endswith(".data"))
    large = sum(entry.bytes for name, entry in exported(ratio=0.5)[1].manifest.files.items() if name.endswith(".data"))
    assert small < 0.3 * large


def test_the_report_counts_tokens_and_flops() -> None:
    _, report = exported(ratio=0.5)
    manifest = report.manifest
    assert [(stage.tokens_in, stage.tokens_out) for stage in manifest.schedule] == [(144, 72)]

    # d=128, m=384, 4 layers, 2 of 4 heads for keys and values: q and o take 4nd^2, k and v 2nd^2; the head 2dV once.
    def formula(n: int) -> float:
        return 4 * (6 * n * 128**2 + 4 * n * n * 128 + 6 * n * 128 * 384) + 2 * 128 * _vocabulary()

    assert manifest.flops["prefill"]["before"] == formula(204)
    assert manifest.flops["prefill"]["after"] == formula(132)
    assert report.peak_bytes > 10_000_000


def test_the_report_counts_what_layers_see_behind_cuts() -> None:
    """FastV cuts before layer 2 of 4, as layer 0 is never scored: (2 * 144 + 2 K) / 4 = 96."""
    _, report = exported_again(method="fastv", keep=96)
    manifest = report.manifest
    assert [(s.site, s.tokens_in, s.tokens_out, s.text_removed) for s in manifest.schedule] == [
        ("llm_input_2", 144, 48, 0)
    ]
    assert (manifest.image_tokens, manifest.requested_tokens, manifest.average_tokens) == (144, 96, 96.0)
    assert (manifest.positions, manifest.llm_positions) == ("original", "original")
    # "<s> USER: " before the image.
    assert manifest.prefix == 3
    assert manifest.cache.length_offsets == (0, 0, -96, -96)

    def layer(n: int) -> float:
        return 6 * n * 128**2 + 4 * n * n * 128 + 6 * n * 128 * 384

    # The score: the last of 204 queries on all keys, by four heads of width 32.
    score = 2 * 204 * 128
    expected = 2 * layer(204) + 2 * layer(108) + score + 2 * 128 * _vocabulary()
    assert manifest.flops["prefill"] == {"before": 4 * layer(204) + 2 * 128 * _vocabulary(), "after": expected}


@pytest.mark.parametrize(
    ("method", "asked", "expected"),
    [
        ("fastv", None, "original"),
        ("fastv", "contiguous", "contiguous"),
        ("visionzip", None, "original"),
        ("ficoco-l", None, "original"),
        ("ficoco-l", "contiguous", "contiguous"),
    ],
)
def test_position_policies(method: str, asked: str | None, expected: str) -> None:
    manifest = exported_again(method=method, ratio=0.5, positions=asked)[1].manifest
    assert (manifest.positions, manifest.llm_positions) == (expected, expected)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_original_positions_are_the_default_of_every_method(name: str) -> None:
    assert positions_of(None, METHODS[name]()) == "original"
    assert positions_of("contiguous", METHODS[name]()) == "contiguous"


def _vocabulary() -> int:
    return int(json.loads((tiny_llava_dir() / "config.json").read_text())["text_config"]["vocab_size"])


def test_ratio_zero_is_the_unpruned_graph_byte_for_byte() -> None:
    # A trace of its own each; then one for all of them, which goes on behind the features and is cut back.
    pairs = [(exported(), exported(ratio=0.0, method="prumerge"))]
    pairs += [(exported_again(), exported_again(ratio=0.0, method=m)) for m in ("random", "ficoco-vl", "aim", "tome")]
    for (plain, _), (path, report) in pairs:
        assert report.manifest.method is None
        for name in ("vision.onnx", "vision.onnx.data", "decoder.onnx", "decoder.onnx.data"):
            assert (path / name).read_bytes() == (plain / name).read_bytes()


def test_exports_are_reproducible(tmp_path: Path) -> None:
    path, _ = exported(ratio=0.5, int8=True)
    export(short_request(model="tiny-llava", output=tmp_path / "again", ratio=0.5, int8=True))
    for name in ("vision.onnx", "vision.onnx.data", "decoder.onnx", "decoder.onnx.data"):
        assert (path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_dummy_7b_layers_export(tmp_path: Path) -> None:
    """The alias works without its checkpoint, at LLaVA-7B's shapes but few layers."""
    path = tmp_path / "bundle"
    report = export(
        short_request(model="llava-1.5-7b", output=path, ratio=0.5, weights="dummy", layers=1, dtype="float16")
    )
    manifest = report.manifest
    assert (manifest.schedule[0].tokens_in, manifest.schedule[0].tokens_out) == (576, 288)
    assert manifest.weights == "dummy"
    assert any("synthetic" in warning for warning in report.warnings)
    # One of 32 layers of 8.45 TFLOPs at 636 tokens, and the head at one position.
    head = 2 * 4096 * 32064
    assert manifest.flops["prefill"]["before"] == pytest.approx(
        8 * 636 * 4096**2 + 4 * 636**2 * 4096 + 6 * 636 * 4096 * 11008 + head
    )
    features = {tensor.name: tensor for tensor in manifest.vision.outputs}["image_features"]
    assert features.shape == (1, 288, 4096)
    assert features.dtype == "float16"


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"model": "tiny-lava"}, ModelError, "did you mean 'tiny-llava'"),
        ({"ratio": 1.0}, InputError, "0 <= ratio < 1"),
        ({"keep": 145}, InputError, r"give 1\.\.144"),
        ({"method": "freeprunner"}, InputError, "did you mean 'freepruner'"),
        ({"options": {"pivots": "3"}}, InputError, "no option 'pivots'"),
        ({"target": "tensort-rtx"}, TargetError, "did you mean 'tensorrt-rtx'"),
        ({"target": "tensorrt-10.3", "dtype": "bfloat16"}, InputError, "takes float16, float32"),
        ({"dtype": "bfloat16"}, InputError, "takes float32, float16"),
        ({"layers": 1}, ModelError, "needs --weights dummy"),
        ({"int8": True, "calibration": Path("nowhere")}, InputError, "doesn't exist"),
        ({"positions": "other"}, InputError, "expected 'contiguous' or 'original'"),
    ],
)
def test_bad_requests_leave_nothing(
    options: dict[str, object], kind: type[LmmpruneError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=message):
        export(short_request(**{"model": "tiny-llava", "output": tmp_path / "out", **options}))
    assert list(tmp_path.iterdir()) == []


def test_an_empty_calibration_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "calib").mkdir()
    with pytest.raises(InputError, match="holds no pictures"):
        export(short_request(model="tiny-llava", output=tmp_path / "out", int8=True, calibration=tmp_path / "calib"))
    assert not (tmp_path / "out").exists()


def test_ctrl_c_leaves_no_bundle(tmp_path: Path) -> None:
    """SIGINT in the middle of the weights: nothing under the name, nothing beside it, exit code 130."""
    program = (
        "import os, signal, sys\n"
        "from lmmprune.compiler.onnx_files import write_graphs as module\n"
        "stream = module.stream_weights\n"
        "def stop(*arguments, **options):\n"
        "    stream(*arguments, **options)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "module.stream_weights = stop\n"
        "from lmmprune.compiler.cli import main\n"
        f"main(['export', '--model', 'tiny-llava', '-o', {str(tmp_path / 'out')!r}])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    assert "interrupted; nothing is left half-written (with --resume, what was written is kept" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_prints_json_and_one_line_errors(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lmmprune.compiler.cli", "export", "--model", "tiny-llava"]
    done = subprocess.run(
        [*command, "--keep", "36", "-o", str(tmp_path / "out"), "--json"], capture_output=True, text=True, check=True
    )
    data = json.loads(done.stdout)
    assert data["sites"] == [
        {"site": "projector_output", "tokens_in": 144, "tokens_out": 36, "text_removed": 0, "kept": "kept_indices"}
    ]
    assert (tmp_path / "out" / "manifest.json").is_file()
    failed = subprocess.run(
        [*command, "--ratio", "2", "-o", str(tmp_path / "x")], capture_output=True, text=True, check=False
    )
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
    assert "0 <= ratio < 1" in failed.stderr
    assert not (tmp_path / "x").exists()


def test_kept_sets_of_float_and_int8_overlap() -> None:
    looks = []
    for int8 in (False, True):
        path, _ = exported(method="cls", ratio=0.5, **({"int8": True} if int8 else {}))
        runtime = Runtime(Bundle.open(path))
        looks.append(
            [runtime.encode_image(s.image).kept for s in load_calibration(resolve("tiny-llava"), None, 8).samples]
        )
    overlaps = [len(set(a) & set(b)) / len(set(a) | set(b)) for a, b in zip(*looks, strict=True)]  # type: ignore[arg-type]
    assert np.mean(overlaps) > 0.8
