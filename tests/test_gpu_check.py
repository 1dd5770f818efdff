"""The check for GPU machines, on a machine without one: arithmetic, tables, isolation of stages, an honest report."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from engine_fixtures import fake_gpu
from fake_cuda import FakeCudart, Kind

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from gpu_check import driver, roofline, stages, table, timing, tiny, torch_layers  # noqa: E402  # found through the line before
from gpu_check.findings import Findings  # noqa: E402  # as above
from gpu_check.settings import LLAVA_7B, TEXT_TOKENS, Settings, length, variant_name  # noqa: E402  # as above

from lmmprune.compiler.backends.cuda import CudaDevice  # noqa: E402  # as above
from lmmprune.errors import InputError, TargetError  # noqa: E402  # as above
from lmmprune.models.family import DecoderSpec  # noqa: E402  # as above
from lmmprune.passes.methods import keep_count  # noqa: E402  # as above


def test_prefill_operations_by_hand() -> None:
    n, d, m, vocabulary = 636, 4096, 11008, 32064
    by_hand = 32 * (8 * n * d * d + 4 * n * n * d + 6 * n * d * m) + 2 * d * vocabulary
    assert 8.4e12 < by_hand < 8.5e12, "the literature says 8.5 T"
    assert roofline.prefill_tera(LLAVA_7B, n, 100.0) == pytest.approx(by_hand / 0.1 / 1e12)


def test_decode_bytes_by_hand() -> None:
    d, m, vocabulary = 4096, 11008, 32064
    weights = 2 * (32 * (4 * d * d + 3 * d * m) + d * vocabulary)
    assert roofline.read_per_step(LLAVA_7B, 2) == weights
    cache = 4 * 636 * 32 * d
    assert roofline.decode_giga_bytes(LLAVA_7B, weights, 636, 10.0) == pytest.approx((weights + cache) / 0.01 / 1e9)


def test_known_gpus_are_found_by_whole_words() -> None:
    found = roofline.known("NVIDIA H200")
    assert found is not None
    assert found.giga_bytes == 4800
    assert roofline.known("NVIDIA L40S") is None, "an L40S is no L4"
    assert roofline.fraction(50.0, 200.0) == 0.25
    assert roofline.fraction(50.0, None) is None


def test_lengths_and_names() -> None:
    assert [length(ratio) for ratio in (0.0, 0.5, 0.9)] == [636, 348, 118]
    assert length(0.9) - TEXT_TOKENS == keep_count(576, ratio=0.9)
    names = [variant_name(ratio, int8=int8) for int8 in (False, True) for ratio in (0.0, 0.5)]
    assert names == ["baseline", "pruned 0.5", "int8", "pruned 0.5 + int8"]


def test_variants_are_timed_in_turns() -> None:
    order: list[str] = []
    runs = {name: (lambda name=name: order.append(name)) for name in "ab"}
    times = timing.interleaved(runs, 4)
    assert order == ["a", "b"] * (timing.WARM_UP + 4)
    assert len(times["a"]["samples"]) == 4
    assert times["a"]["q1"] <= times["a"]["median"] <= times["a"]["q3"]
    assert timing.spread([1.0, 2.0, 3.0, 4.0, 5.0])["median"] == 3.0


def test_a_run_that_breaks_is_left_out() -> None:
    left = {"a": 99, "b": 2}
    found = Findings(lambda _: None)

    def run(name: str) -> None:
        left[name] -= 1
        if left[name] < 0:
            raise ValueError(f"{name} is used up")

    times = timing.interleaved({name: partial(run, name) for name in "ba"}, 4, found.guard)
    assert (times.keys(), len(times["a"]["samples"])) == ({"a"}, 4)
    assert found.data["reasons"] == {"b": "ValueError: b is used up"}
    assert left["b"] == -1, "it isn't tried again"
    with pytest.raises(ValueError, match="used up"):
        timing.interleaved({"b": partial(run, "b")}, 4)


def entry(data: Any = None, status: str = "ok", **more: Any) -> dict[str, Any]:
    return {"status": status, "seconds": 1.0, "layers": 4, "quick": False, "data": data, **more}


def layer_row(ratio: float, prefill: float, decode: float, *, int8: bool = False) -> dict[str, Any]:
    return {
        "variant": variant_name(ratio, int8=int8),
        "ratio": ratio,
        "int8": int8,
        "tokens": length(ratio),
        "weight_bytes": 1e9,
        "prefill_ms": timing.spread([prefill] * 3),
        "decode_ms": timing.spread([decode] * 3),
    }


FOUND = {
    "peak": entry({"tera": {"float16": 800.0, "int8": 1600.0}, "giga_bytes": 4000.0}),
    "torch-sdpa": entry({"rows": [layer_row(0.0, 12.0, 3.0)]}),
    "ort-7b": entry(status="unavailable", reason="no | CUDA\nhere"),
    "rtx-7b": entry(
        {
            "rows": [
                layer_row(0.0, 8.0, 2.0),
                layer_row(0.5, 4.0, 2.0),
                layer_row(0.0, 4.0, 1.0, int8=True),
                layer_row(0.5, 2.5, 1.0, int8=True),
            ]
        }
    ),
}


def test_summary_of_the_layers() -> None:
    rows = {(row["stage"], row["variant"]): row for row in table.summarize(FOUND)}
    base, both = rows["rtx-7b", "baseline"], rows["rtx-7b", "pruned 0.5 + int8"]
    n, d, m = 636, 4096, 11008
    operations = 4 * (8 * n * d * d + 4 * n * n * d + 6 * n * d * m) + 2 * d * 32064
    assert base["prefill_tera"] == pytest.approx(operations / 8e-3 / 1e12)
    assert base["prefill_fraction"] == pytest.approx(base["prefill_tera"] / 800)
    assert base["decode_fraction"] == pytest.approx((1e9 + 4 * 636 * 4 * d) / 2e-3 / 4e12)
    assert (base["speedup"], base["over_torch"]) == (1.0, 1.5)
    assert both["speedup"] == pytest.approx(3.2)
    assert both["prefill_fraction"] == pytest.approx(both["prefill_tera"] / 1600), "INT8 against the peak of INT8"
    assert both["over_torch"] is None, "torch wasn't timed there"
    assert table.products(list(rows.values())) == [
        {"stage": "rtx-7b", "ratio": 0.5, "expected": pytest.approx(4.0), "measured": pytest.approx(3.2)}
    ]


def test_report_says_what_is_missing() -> None:
    text = table.report(FOUND)
    assert "| ort-7b | unavailable | 1.0 | no \\| CUDA here |" in text
    assert "| rtx-7b | 4 | pruned 0.5 + int8 | 348 | 2.500 | 3.20 | - |" in text
    assert "pruning x int8 = 4.00 expected, 3.20 measured (0.80 of it)" in text
    for block in text.split("\n\n"):
        bars = {line.replace("\\|", "").count("|") for line in block.splitlines() if line.startswith("|")}
        assert len(bars) <= 1, block
    assert "* Peaks of this GPU, measured: 800 TFLOP/s float16, 1600 TFLOP/s int8, 4000 GB/s." in text
    # Without peaks and without torch the times are still there.
    alone = table.report({"rtx-7b": FOUND["rtx-7b"]})
    assert "| rtx-7b | 4 | baseline | 636 | 8.000 | 1.00 | - |" in alone


def test_depths_do_not_mix() -> None:
    deeper = {**FOUND, "rtx-7b": {**FOUND["rtx-7b"], "layers": 8}}
    row = next(row for row in table.summarize(deeper) if row["stage"] == "rtx-7b")
    assert row["over_torch"] is None
    assert row["prefill_tera"] > 1.9 * table.summarize(FOUND)[1]["prefill_tera"]


def test_a_stage_that_breaks_leaves_what_it_had(tmp_path: Path) -> None:
    result = tmp_path / "r.json"
    before = f'from pathlib import Path; Path({str(result)!r}).write_text(\'{{"data": {{"found": 1}}}}\'); '
    crash = stages.run_apart([sys.executable, "-c", before + "raise ValueError('it broke')"], result, 60)
    assert (crash["status"], crash["reason"], crash["data"]) == ("failed", "ValueError: it broke", {"found": 1})
    assert "Traceback" in crash["stderr"]
    killed = stages.run_apart([sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"], result, 60)
    assert (killed["status"], killed["reason"]) == ("failed", "it ended with code -11")
    slow = stages.run_apart([sys.executable, "-c", before + "import time; time.sleep(60)"], result, 1.5)
    assert (slow["status"], slow["data"]) == ("timeout", {"found": 1})
    assert slow["seconds"] < 20


def test_refusals_are_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpu_check import peak

    def measure(settings: Settings, save: Any) -> dict[str, Any]:
        save({"found": 1})
        raise TargetError("no GPU")

    monkeypatch.setattr(peak, "measure", measure)
    stages.run("peak", Settings(work=tmp_path), tmp_path / "r.json")
    assert stages.read_json(tmp_path / "r.json") == {"data": {"found": 1}, "status": "unavailable", "reason": "no GPU"}


def test_selection() -> None:
    assert "cpu-tiny" not in stages.select(None)
    assert stages.select("env,rtx") == ["env", "rtx-tiny", "rtx-7b"]
    assert stages.select("torch-sdpa,torch") == ["torch-sdpa", "torch-compile"]
    with pytest.raises(InputError, match="no stage 'rtxx'; did you mean 'rtx-"):
        stages.select("rtxx")


def test_fixed_caches_stay_out_of_the_product() -> None:
    rows = [{**row, "fixed": False} for row in FOUND["rtx-7b"]["data"]["rows"]]
    fixed = {**layer_row(0.0, 1.0, 0.5, int8=True), "fixed": True}
    found = table.summarize({"rtx-7b": entry({"rows": [*rows, fixed]})})
    assert [product["expected"] for product in table.products(found)] == [pytest.approx(4.0)]
    assert variant_name(0.0, int8=True, fixed=True) == "int8, fixed cache"


def test_the_drivers_layer_passes_on_the_stand_in(tmp_path: Path) -> None:
    cuda = FakeCudart(total=2**27)
    with fake_gpu(cuda):
        data = driver.check(Settings(work=tmp_path), lambda _: None)
    assert data["checks"] == {"copies": True, "out of memory": True, "graph": True, "freed": True}
    assert data["arch"] == "sm89"


@pytest.mark.parametrize("broken", [Kind.cudaMemcpyHostToDevice, Kind.cudaMemcpyDeviceToHost])
def test_the_drivers_check_notices_half_a_copy(broken: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCudart()
    real = cuda.cudaMemcpyAsync

    def half(to: int, start: int, size: int, kind: Kind, stream: int) -> tuple[int]:
        return real(to, start, size // 2 if kind == broken else size, kind, stream)

    monkeypatch.setattr(cuda, "cudaMemcpyAsync", half)
    with fake_gpu(cuda):
        assert not driver.copies(CudaDevice())


def test_torchs_layers_prefill_and_step_at_a_fixed_length() -> None:
    spec = DecoderSpec(
        layers=2, width=32, mlp_width=48, heads=4, kv_heads=4, head_dim=8, vocabulary=50, max_positions=64
    )
    model = torch_layers.make_model(spec, "cpu")
    weights = {name: tensor.numel() for name, tensor in model.named_parameters() if "norm" not in name}
    read = sum(weights.values()) - weights["model.embed_tokens.weight"]
    assert roofline.read_per_step(spec, 2) == 2 * read, "the formula counts what the model has"
    prefill, decode = torch_layers.make_runs(model, spec, 12)
    first: Any = prefill()
    assert tuple(first.logits.shape) == (1, 1, 50)
    assert first.past_key_values.get_seq_length() == 12
    for _ in range(3):
        step: Any = decode()
        assert step.past_key_values.get_seq_length() == 12, "cut back after every step"
        assert tuple(step.logits.shape) == (1, 1, 50)


def test_a_stage_of_refused_variants_is_not_ok(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(output: Path, **request: Any) -> Any:
        raise TargetError("the memory is full")

    monkeypatch.setattr(tiny, "bundle_of", refuse)
    stages.run("cpu-tiny", Settings(work=tmp_path, quick=True, layers=1), tmp_path / "result.json")
    found = stages.read_json(tmp_path / "result.json")
    assert found["status"] == "unavailable"
    assert found["reason"].startswith("no variant ran: baseline: the memory is full; pruned 0.5: ")
    assert {entry["reason"] for entry in found["data"]["variants"].values()} == {"the memory is full"}


def test_stages_load_without_the_export_packages() -> None:
    code = (
        "import sys; import gpu_check.tiny, gpu_check.layers, gpu_check.driver; "
        "print({name.split('.')[0] for name in sys.modules} & {'torch', 'transformers', 'onnx_ir', 'sklearn'})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=SCRIPTS, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()", "a Jetson has bundles from elsewhere"


def test_command_merges_and_exits_with_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("gpu_check_command", SCRIPTS / "gpu_check" / "__main__.py")
    assert spec is not None
    assert spec.loader is not None
    command = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(command)
    ran: list[str] = []

    def run_apart(words: list[str], result: Path, limit: float) -> dict[str, Any]:
        ran.append(words[words.index("--one") + 1])
        return {"status": "unavailable" if ran[-1] == "peak" else "ok", "reason": "", "seconds": 1.0, "data": {}}

    monkeypatch.setattr(command, "run_apart", run_apart)
    output = tmp_path / "out.json"

    def call(*more: str) -> dict[str, Any]:
        with pytest.raises(SystemExit) as stop:
            command.main(["-o", str(output), "--work", str(tmp_path / "w"), *more])
        assert stop.value.code == 0
        found: dict[str, Any] = json.loads(output.read_text())["stages"]
        return found

    call("--stages", "env,peak")
    found = call("--stages", "env,peak,torch")
    assert ran == ["env", "peak", "peak", "torch-sdpa", "torch-compile"], "what is ok isn't run again"
    assert found.keys() == {"env", "peak", "torch-sdpa", "torch-compile"}
    assert call("--stages", "rtx", "--budget", "1")["rtx-7b"]["reason"] == "the call's --budget was spent before it"
    assert "| peak | unavailable |" in output.with_suffix(".md").read_text()
    with pytest.raises(SystemExit) as stop:
        command.main(["--stages", "nonsense"])
    assert stop.value.code == 2


def test_the_real_command_here_is_honest(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "gpu_check"), "--quick", "--stages", "rtx-7b,cuda"]
    output = tmp_path / "out.json"
    done = subprocess.run(
        [*command, "--work", str(tmp_path / "w"), "-o", str(output)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())["stages"]
    assert {name: stage["status"] for name, stage in found.items()} == {
        "rtx-7b": "unavailable",
        "cuda": "unavailable",
    }
    assert all(stage["reason"] for stage in found.values())
