"""Answers of engines on the fake GPU: the same as ONNX Runtime's, without the cache ever passing the host."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runtime_fixtures as fx
from engine_fixtures import add_engines, fake_gpu, on_the_cpu
from exports import exported_again
from fake_cuda import FakeCudart, Kind

from lmmprune.compiler.backends.engine_session import EngineSession
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.measure import memory
from lmmprune.compiler.measure.bench import bench
from lmmprune.compiler.runtime.asked import Asked
from lmmprune.compiler.runtime.open_picture import load_image
from lmmprune.compiler.runtime.runtime import Runtime

EXAMPLES = Path(__file__).parents[1] / "models" / "tiny_llava" / "examples"
LOOK = (3, 5, 9, 15)


def session(value: Any) -> EngineSession:
    assert isinstance(value, EngineSession)
    return value


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("keep", [4, fx.PATCHES])
def test_answers_equal_onnxruntimes(tmp_path: Path, dtype: str, keep: int) -> None:
    bundle = fx.make_bundle(tmp_path / "out", keep=keep, dtype=dtype, target="tensorrt-rtx")
    add_engines(bundle)
    expected = Runtime(on_the_cpu(bundle)).answer(fx.picture(*LOOK), "hi?", 24)
    _ = expected.text
    with fake_gpu() as trt:
        found = Runtime(bundle).answer(fx.picture(*LOOK), "hi?", 24)
        _ = found.text
    assert found.tokens == expected.tokens
    assert len(set(found.tokens)) > 5, "the fixture must not repeat itself"
    assert (found.kept is None) == (keep == fx.PATCHES)
    if found.kept is not None:
        assert found.kept.tolist() == list(LOOK)
    assert trt.executed == ["only", "prefill", *["decode"] * 23]


def test_the_cache_alternates_between_two_buffers_and_never_passes_the_host(tmp_path: Path) -> None:
    bundle = fx.make_bundle(tmp_path / "out", keep=4, target="tensorrt-rtx")
    add_engines(bundle)
    cuda = FakeCudart()
    with fake_gpu(cuda) as trt:
        runtime = Runtime(bundle)
        decoder = session(runtime._session("decoder"))
        _ = runtime.answer(fx.picture(*LOOK), "hi?", 40).text
        allocations, copies = decoder.allocations, {kind: len(sizes) for kind, sizes in cuda.copied.items()}
        _ = runtime.answer(fx.picture(*LOOK), "hi?", 40).text
        assert decoder.allocations == allocations, "the second answer finds every buffer"
        # Two buffers for the outputs, of which the caches are a part; ids, positions and four empty caches.
        assert decoder.allocations == 2 + 6
        again = cuda.copied[Kind.cudaMemcpyDeviceToHost][copies[Kind.cudaMemcpyDeviceToHost] :]
        assert again == [4 * 8, 4 * 8, *[fx.VOCAB * 4] * 40], "kept indices and 40 times logits are all that comes back"
        up = cuda.copied[Kind.cudaMemcpyHostToDevice][copies[Kind.cudaMemcpyHostToDevice] :]
        prompt = 8 * (1 + 4 + len("USER: \nhi? ASSISTANT:"))
        pixels = 3 * fx.SIZE**2 * 4
        assert up == [pixels, prompt, prompt, *[8] * 2 * 39], "pixels, ids and positions are all that goes there"
        assert trt.deserialized == 2
    del runtime, decoder
    gc.collect()
    assert cuda.blocks == {}, "all device memory is free again"
    assert cuda.pinned == {}


TINY: dict[str, dict[str, Any]] = {
    "baseline": {},
    "pruned before the decoder": {"ratio": 0.5},
    "pruned inside the decoder": {"ratio": 0.5, "method": "fastv"},
    "a cache of fixed length": {"ratio": 0.5, "method": "fastv", "static_cache": 200},
    "pictures choose their count": {"method": "inflection", "buckets": (0.5, 0.75)},
}


@pytest.mark.parametrize("variant", TINY)
def test_tiny_llava_answers_as_in_onnxruntime(variant: str, tmp_path: Path) -> None:
    path, _ = exported_again(dtype="float32", target="tensorrt-rtx", **TINY[variant])
    shutil.copytree(path, tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    add_engines(bundle)
    cpu = Runtime(on_the_cpu(bundle))
    offsets = bundle.manifest.cache.length_offsets
    inside, fixed = TINY[variant].get("method") == "fastv", "static_cache" in TINY[variant]
    assert (len(set(offsets)) > 1) == inside, "the layers' caches differ in length"
    with fake_gpu():
        gpu = Runtime(bundle)
        for row in map(json.loads, (EXAMPLES / "examples.jsonl").read_text().splitlines()[:3]):
            image, prompt = load_image(EXAMPLES / row["image"]), row["prompt"]
            expected, found = (runtime.answer(image, prompt, 8, stop_at_eos=False) for runtime in (cpu, gpu))
            assert found.text == expected.text
            assert found.tokens == expected.tokens
        assert bool(session(gpu._session("decoder")).recorded["decode"]) == fixed, (
            "a step of fixed shapes is one CUDA graph"
        )
        sites = gpu.prefill_sites(
            gpu.encode_image(image), gpu.prompter.encode(prompt, image_tokens=found.stats.image_tokens)
        )
        wanted = cpu.prefill_sites(
            cpu.encode_image(image), cpu.prompter.encode(prompt, image_tokens=found.stats.image_tokens)
        )
        assert sites.keys() == wanted.keys()
        for name, site in sites.items():
            np.testing.assert_array_equal(site.kept, wanted[name].kept)


def test_rows_of_a_batch_are_answered_as_in_onnxruntime(tmp_path: Path) -> None:
    path, _ = exported_again(dtype="float32", target="tensorrt-rtx", ratio=0.5, method="fastv", batch=2)
    shutil.copytree(path, tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    add_engines(bundle)
    cpu = Runtime(on_the_cpu(bundle))
    rows = [json.loads(line) for line in (EXAMPLES / "examples.jsonl").read_text().splitlines()[:2]]
    asked = [
        Asked(image=load_image(EXAMPLES / row["image"]), prompt=row["prompt"] + more, max_new_tokens=6)
        for row, more in zip(rows, ("", " say it"), strict=True)
    ]
    with fake_gpu():
        gpu = Runtime(bundle)
        said = [[(one.text, one.tokens) for one in runtime.answer_batch(asked)] for runtime in (cpu, gpu)]
        assert said[0] == said[1]
        # One question alone is a batch of copies.
        assert gpu.answer(asked[1].image, asked[1].prompt, 6).text == said[0][1][0]


def test_bench_times_engines_beside_onnxruntime(tmp_path: Path) -> None:
    first = fx.make_bundle(tmp_path / "cpu", keep=4).path
    second = fx.make_bundle(tmp_path / "gpu", keep=4, target="tensorrt-rtx")
    add_engines(second)
    picture = fx.save_picture(tmp_path / "p.png", 1)
    with fake_gpu():
        report = bench([first, second.path], picture, "hi", rounds=2, new_tokens=3, memory=False)
    assert report.machine["backends"].keys() == {"onnxruntime", "tensorrt_rtx"}
    assert [row.target for row in report.rows] == ["ort-cpu", "tensorrt-rtx"]
    assert all(row.times["ms_per_token"].median > 0 for row in report.rows)


def test_memory_counts_the_device_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = fx.make_bundle(tmp_path / "gpu", keep=4, target="tensorrt-rtx")
    add_engines(bundle)
    picture = fx.save_picture(tmp_path / "p.png", 1)
    with fake_gpu():
        memory._main(str(bundle.path), json.dumps([str(picture)]), "hi", "0", "sealed")
    found = json.loads(capsys.readouterr().out)
    # Scratch; pixels and what the vision graph gives; ids, positions, four empty caches, twice the decoder's outputs.
    assert found["device"] == 4096 + (1 + 1 + 6 + 2) * 2**16
