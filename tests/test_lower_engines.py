"""A real TensorRT parser and builder take what is lowered for targets without high-level operators: opset 20, sm89."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
from lowering import PREFIX, in_precision, pruned

from lmmprune.compiler.build.compile_engine import build_engine
from lmmprune.compiler.build.profiles import Profile
from lmmprune.compiler.lower.lower import LOWERINGS, lower
from lmmprune.compiler.targets.targets import TARGETS

pytest.importorskip("tensorrt_rtx")


def profile(model: ir.Model, name: str, seq: tuple[int, int, int], past: tuple[int, int, int]) -> Profile:
    """The ranges of every dynamic input: sequence and caches."""
    ranges = {"seq": seq, "past": past}
    shapes = {}
    for value in model.graph.inputs:
        dims = [d if isinstance(d, int) else ranges[str(d.value).split("_")[0]] for d in value.shape or ()]
        if any(isinstance(dim, tuple) for dim in dims):
            low, likely, high = (tuple(d if isinstance(d, int) else d[i] for d in dims) for i in range(3))
            shapes[str(value.name)] = (low, likely, high)
    return Profile(name=name, shapes=shapes)


@pytest.mark.parametrize(
    ("method", "dtype", "int8"),
    [
        ("freepruner", "float16", False),
        ("ficoco-l", "float16", False),
        ("fastv", "float16", True),
    ],
)
def test_lowered_graphs_build(method: str, dtype: str, int8: bool, tmp_path: Path) -> None:
    vision, decoder = in_precision(method, dtype, int8=int8)
    shortest = PREFIX + pruned(method)[2] + 4
    for part, model in (("vision", vision), ("decoder", decoder)):
        lower(model, TARGETS["tensorrt-10.3"])
        assert not {node.op_type for node in model.graph} & set(LOWERINGS)
        path = tmp_path / f"{part}.onnx"
        ir.save(model, path)
        profiles = [
            profile(model, "prefill", (shortest, shortest + 9, 99), (0, 0, 0)),
            profile(model, "decode", (1, 1, 2), (1, 60, 120)),
        ]
        engine = build_engine(
            TARGETS["tensorrt-rtx"], path, profiles=profiles if part == "decoder" else (), arch="sm89"
        )
        assert len(engine.plan) > 10_000
