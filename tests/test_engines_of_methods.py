"""Real TensorRT-RTX engines of every method's graphs, in three types and for three architectures.

A Latin square of them: every two of method, precision and architecture meet once. All of them meet in
``scripts/tiny_llava/engine_cube.py``.
"""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
from exports import exported_again
from one_picture import OF_ONE_PICTURE

from lmmprune.compiler.build.build import build
from lmmprune.compiler.bundle.manifest import Manifest

PRECISIONS: dict[str, dict[str, object]] = {
    "float32": {"dtype": "float32"},
    "float16": {},
    "int8": {"int8": True, "calibration_samples": 2},
}
ARCHS = ("sm86", "sm89", "sm120")
FACTORS = (tuple(sorted(OF_ONE_PICTURE)), tuple(PRECISIONS), ARCHS)
CUBE = list(itertools.product(*FACTORS))
# What the defaults leave out on so small a grid.
OPTIONS = {"inflection": (("prune_text", "2"),), "ficoco-vl": (("targets", "quantile"),)}
SQUARE = [
    (name, precision, ARCHS[(row + column) % len(ARCHS)])
    for row, name in enumerate(FACTORS[0])
    for column, precision in enumerate(FACTORS[1])
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "arch" in metafunc.fixturenames:
        metafunc.parametrize(("name", "precision", "arch"), CUBE if metafunc.config.getoption("cube") else SQUARE)


def changed(manifest: Manifest) -> list[str]:
    """Return the graphs that the method cuts in: the others are as without it."""
    cut = {
        "vision": any(not stage.in_decoder for stage in manifest.schedule),
        "decoder": bool(manifest.decoder_sites),
        "selection": manifest.selection is not None,
    }
    return [name for name, is_cut in cut.items() if is_cut]


@pytest.mark.parametrize(("one", "other"), itertools.combinations(range(len(FACTORS)), 2))
def test_every_two_meet_in_the_square(one: int, other: int) -> None:
    assert {(case[one], case[other]) for case in SQUARE} == set(itertools.product(FACTORS[one], FACTORS[other]))


def test_every_method_of_tiny_llava_builds(name: str, precision: str, arch: str, tmp_path: Path) -> None:
    options = {"options": OPTIONS[name]} if name in OPTIONS else {}
    path, report = exported_again(target="tensorrt-rtx", method=name, ratio=0.5, **options, **PRECISIONS[precision])
    copy = tmp_path / "bundle"
    shutil.copytree(path, copy)
    components = changed(report.manifest)
    built = build(copy, "tensorrt-rtx", arch=arch, components=components)
    assert [entry.record.component for entry in built] == components
    assert components
    assert all(entry.record.bytes > 100_000 for entry in built)


def test_bucket_graphs_build() -> None:
    path, _ = exported_again(target="tensorrt-rtx", method="inflection", buckets=(0.5, 0.75))
    built = build(path, "tensorrt-rtx", arch="sm89")
    assert [entry.record.component for entry in built] == ["vision", "decoder", "bucket_36", "bucket_72"]
    assert all(any(name.endswith(".data") for name in entry.record.source) for entry in built)
