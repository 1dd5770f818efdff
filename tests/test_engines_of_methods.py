"""Real TensorRT-RTX engines (sm89, float16) of every method's graphs."""

from __future__ import annotations

from pathlib import Path

import pytest
from exports import exported_again

from lmmprune.compiler.build import build
from lmmprune.passes.methods import METHODS


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_of_tiny_llava_builds(name: str, tmp_path: Path) -> None:
    options = {"options": (("prune_text", "2"),)} if name == "inflection" else {}
    path, _ = exported_again(target="tensorrt-rtx", method=name, ratio=0.5, **options)
    built = build(path, "tensorrt-rtx", arch="sm89")
    assert [entry.record.component for entry in built] == ["vision", "decoder"]
    assert all(entry.record.bytes > 100_000 for entry in built)


def test_heads_of_several_counts_build() -> None:
    path, _ = exported_again(target="tensorrt-rtx", method="inflection", buckets=(0.5, 0.75))
    built = build(path, "tensorrt-rtx", arch="sm89")
    assert [entry.record.component for entry in built] == ["vision", "decoder", "head_36", "head_72"]
    assert all(any(name.endswith(".data") for name in entry.record.source) for entry in built)
