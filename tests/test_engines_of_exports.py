"""Real TensorRT-RTX engines of real exports: every type, pruned and not, for an architecture each or all three."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from exports import exported, exported_again
from test_engines_of_methods import ARCHS

from lmmprune.compiler.build.build import build
from lmmprune.compiler.verify.verify import verify

VARIANTS: dict[str, dict[str, object]] = {
    "fp32": {"dtype": "float32"},
    "fp16 pruned": {"ratio": 0.5},
    "bf16 pruned": {"ratio": 0.5, "dtype": "bfloat16"},
    "int8 pruned": {"ratio": 0.5, "int8": True},
    "int8, a cache of fixed length": {"ratio": 0.5, "method": "fastv", "int8": True, "static_cache": 200},
}


# Every type meets every architecture here or in the square of methods, which has no bfloat16.
CASES = [
    (variant, arch)
    for row, variant in enumerate(VARIANTS)
    for column, arch in enumerate(ARCHS)
    if "bf16" in variant or row % len(ARCHS) == column
]


@pytest.mark.parametrize(("variant", "arch"), CASES)
def test_exports_build(variant: str, arch: str, tmp_path: Path) -> None:
    path, report = exported(target="tensorrt-rtx", **VARIANTS[variant])
    copy = tmp_path / "bundle"
    shutil.copytree(path, copy)
    built = build(copy, "tensorrt-rtx", arch=arch)
    assert [entry.record.component for entry in built] == ["vision", "decoder"]
    for entry in built:
        engine = copy / "engines" / f"tensorrt-rtx-{arch}" / f"{entry.record.component}.engine"
        assert engine.stat().st_size == entry.record.bytes > 100_000
    assert report.manifest.precision.int8 == ("s8s8" if "int8" in variant else None)


FIXED: dict[str, dict[str, object]] = {
    "float16": {},
    "int8": {"int8": True, "calibration_samples": 2},
    "float16 pruned": {"ratio": 0.5},
    "int8 pruned": {"ratio": 0.5, "int8": True, "calibration_samples": 2},
    "float16, cut in the decoder": {"ratio": 0.5, "method": "fastv"},
    "int8, cut in the decoder": {"ratio": 0.5, "method": "fastv", "int8": True, "calibration_samples": 2},
}


@pytest.mark.parametrize("variant", FIXED)
def test_decoders_with_a_cache_of_fixed_length_build(variant: str, tmp_path: Path) -> None:
    path, _ = exported_again(target="tensorrt-rtx", static_cache=256, **FIXED[variant])
    copy = tmp_path / "bundle"
    shutil.copytree(path, copy)
    [decoder] = build(copy, "tensorrt-rtx", arch="sm89", components=["decoder"])
    assert list(decoder.record.profiles) == ["prefill", "decode"]


@pytest.mark.parametrize("variant", ["fp16 pruned", "int8 pruned"])
def test_graphs_for_the_compiler_keep_the_numerics(variant: str) -> None:
    path, _ = exported(target="tensorrt-rtx", **VARIANTS[variant])
    checks = verify(path, samples=2, progress=lambda *_: None)
    assert all(check.passed for check in checks), checks
