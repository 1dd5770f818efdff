"""Counts that depend on the picture: the knee, the constant of a percentile, and buckets behind one encoder."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from exports import exported_again
from random_models import SHAPES, Shape, canonical, torch_model
from short_request import short_request
from towers import session
from verdicts import not_held

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.data.calibration import load_calibration
from lmmprune.compiler.export.dynamic_counts import DynamicCounts
from lmmprune.compiler.export.export import export
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.compiler.verify.reference import knee
from lmmprune.compiler.verify.verify import verify
from lmmprune.errors import InputError
from lmmprune.models.source import resolve
from lmmprune.passes.methods import get_method
from lmmprune.passes.reduce.split_vision import CountTokens

RATIOS = (0.75, 0.8, 0.85)
SIZES = (22, 29, 36)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape.has_cls], ids=lambda shape: str(shape.seed))
def test_the_graph_finds_the_knee(shape: Shape) -> None:
    model = canonical(shape)[0].clone()
    CountTokens(method=get_method("inflection"), grid=shape.facts.grid)(model)
    call = session(model)
    rng = np.random.default_rng(shape.seed)
    for _ in range(8):
        pixels = rng.standard_normal((shape.batch, 3, shape.grid * 4, shape.grid * 4)).astype(np.float32)
        found = call({"pixel_values": pixels})["dynamic_count"]
        np.testing.assert_array_equal(found, knee(torch_model(shape), torch.from_numpy(pixels)))


def test_a_percentile_is_a_count_that_serves_so_many() -> None:
    def keep(percentile: float) -> int:
        counts = (5, 1, 4, 2, 3)
        return DynamicCounts(method="m", source="s", tokens=9, percentile=percentile, counts=counts).keep

    assert [keep(p) for p in (1, 20, 21, 60, 80, 81, 100)] == [1, 1, 2, 3, 4, 5, 5]


def test_auto_keeps_the_percentile_and_saves_the_histogram() -> None:
    path, report = exported_again(method="inflection", auto=True, percentile=75.0)
    row = json.loads((path / "token_counts.json").read_text())
    assert report.counts is not None
    assert row["counts"] == list(report.counts.counts)
    assert len(row["counts"]) == 32
    assert np.mean(np.array(row["counts"]) <= report.manifest.image_tokens) >= 0.75
    assert report.manifest.image_tokens in row["counts"]
    assert (path / "token_counts.png").stat().st_size > 5000
    assert [stage.site for stage in report.manifest.schedule] == ["vision_output", "llm_input_2"]


def test_the_run_time_takes_the_smallest_bucket_that_is_large_enough() -> None:
    path, report = exported_again(method="inflection", buckets=RATIOS)
    assert tuple(bucket.tokens for bucket in report.manifest.buckets) == SIZES
    runtime = Runtime(Bundle.open(path))
    seen = set()
    for sample in load_calibration(resolve("tiny-llava"), None, 12).samples:
        visual = runtime.encode_image(sample.image)
        assert visual.dynamic_count is not None
        wanted = min((size for size in SIZES if size >= visual.dynamic_count), default=SIZES[-1])
        assert visual.tokens == wanted
        seen.add(wanted)
        # The same picture through a bundle that has just this count.
        single, _ = exported_again(method="inflection", keep=wanted, options=(("llm_keep", "1"),))
        alone = Runtime(Bundle.open(single))
        expected = alone.encode_image(sample.image)
        assert visual.kept is not None
        assert expected.kept is not None
        np.testing.assert_array_equal(visual.kept, expected.kept)
        np.testing.assert_allclose(visual.features, expected.features, atol=1e-5)
        answer, reference = runtime.answer(visual, sample.prompt), alone.answer(expected, sample.prompt)
        assert answer.text == reference.text
        assert answer.stats.dynamic_count == visual.dynamic_count
        assert answer.stats.image_tokens == wanted
    assert len(seen) > 1


def test_a_bucket_may_keep_everything() -> None:
    path, report = exported_again(method="inflection", buckets=(0.0, 0.85))
    assert report.manifest.method == "inflection"
    assert (report.manifest.tokens_before, report.manifest.image_tokens) == (144, 144)
    runtime = Runtime(Bundle.open(path))
    looks = [runtime.encode_image(sample.image) for sample in load_calibration(resolve("tiny-llava"), None, 32).samples]
    assert {look.tokens for look in looks} == {22, 144}


def test_buckets_share_one_decoder_and_one_file_of_weights() -> None:
    path, _ = exported_again(method="inflection", buckets=RATIOS)
    plain, _ = exported_again()
    graphs = sorted(path.glob("bucket_*.onnx"))
    assert len(graphs) == len(SIZES)
    assert all(graph.stat().st_size < 10_000 for graph in graphs)

    def weights(folder: Path) -> int:
        return sum(file.stat().st_size for file in folder.glob("*.data"))

    # A bucket's weights begin on a page of their own; nothing is stored twice.
    assert weights(path) <= weights(plain) + 4 * 65536


def test_buckets_in_int8_share_one_decoder_and_the_same_integers() -> None:
    path, _ = exported_again(method="inflection", buckets=RATIOS, int8=True, calibration_samples=4)
    assert not not_held(verify(path))
    weights = []
    for graph in sorted(path.glob("bucket_*.onnx")):
        initializers = ir.load(graph).graph.initializers.values()
        integers = {value.name: value.const_value for value in initializers if str(value.name).endswith("/int8")}
        assert integers
        weights.append({name: (tensor.location, tensor.offset) for name, tensor in integers.items()})
    assert len(weights) == len(SIZES)
    assert all(one == weights[0] for one in weights)


MISTAKES = {
    "no count of its own": {"method": "cls", "auto": True},
    "is empty": {"method": "inflection", "buckets": []},
    "--int8-policy auto don't go": {"method": "inflection", "buckets": RATIOS, "int8": True, "int8_policy": "auto"},
    "percentile": {"method": "inflection", "auto": True, "percentile": 0.0},
    "it is the fraction": {"method": "inflection", "buckets": (0.5, 1.5)},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_leave_nothing(message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        export(short_request(model="tiny-llava", output=tmp_path / "out", **MISTAKES[message]))
    assert not (tmp_path / "out").exists()


def test_a_killed_count_leaves_nothing_behind_the_next_export(tmp_path: Path) -> None:
    """It kills itself, as nothing but the kernel can, while the encoder runs on pictures."""
    program = (
        "import os, signal, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "from short_request import short_request\n"
        "from lmmprune.compiler.export.export import export\n"
        "def stop(what, done, of):\n"
        "    if what == 'count tokens':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "export(short_request(model='tiny-llava', output=Path(sys.argv[1]), method='inflection', auto=True), stop)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "out")], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = tmp_path / ".out.partial"
    assert any(path.name.startswith("counts.") for path in left.iterdir()), "where the encoder lies while it counts"
    export(short_request(model="tiny-llava", output=tmp_path / "out", ratio=0.5))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not any(path.name.startswith("counts.") for path in (tmp_path / "out").iterdir())
