"""Every target's graphs say in ONNX Runtime what the canonical graphs say: all precisions, cuts on both sides."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from closeness import Closeness, compare_outputs
from lowering import Arrays, answers, in_precision

from lmmprune.compiler.lower import find_violations
from lmmprune.compiler.lower.lower import LOWERINGS, lower
from lmmprune.compiler.targets.target import Target
from lmmprune.compiler.targets.targets import TARGETS
from lmmprune.passes.lower.emulate_bfloat16 import EmulateBfloat16

METHODS = ("freepruner", "ficoco-l", "fastv")
# The precision's type, whether it is INT8, and the lowest cosine to the same graph before lowering. In half precision
# the softmax is rounded otherwise; under INT8 that becomes a whole step for some activations, and may turn a near-tie.
PRECISIONS = {
    "float32": ("float32", False, 0.99999999),
    "float16": ("float16", False, 0.9999),
    "int8": ("float32", True, 0.9999),
    "int8 float16": ("float16", True, 0.999),
    # Computed by ``EmulateBfloat16``.
    "bfloat16": ("bfloat16", False, 0.999),
    "int8 bfloat16": ("bfloat16", True, 0.99),
}
# Where near-ties may go the other way, and how much of the cosine that may take.
SLACK = {"int8 float16": 0.002, "bfloat16": 0.0005, "int8 bfloat16": 0.005}


@functools.cache
def before(method: str, precision: str) -> tuple[Arrays, list[Arrays]]:
    """What the graphs say before lowering, on features of the float32 graph."""
    dtype, int8, _ = PRECISIONS[precision]
    return say(in_precision(method, dtype, int8=int8), features(method, precision))


@functools.cache
def after(method: str, precision: str, like: str) -> tuple[Arrays, list[Arrays]]:
    """What they say lowered for a target."""
    dtype, int8, _ = PRECISIONS[precision]
    graphs = in_precision(method, dtype, int8=int8)
    for model in graphs:
        lower(model, TARGETS[like])
    return say(graphs, features(method, precision))


def say(graphs: tuple[ir.Model, ir.Model], features: np.ndarray | None) -> tuple[Arrays, list[Arrays]]:
    for model in graphs:
        EmulateBfloat16()(model)
    return answers(*graphs, features)


def features(method: str, precision: str) -> np.ndarray | None:
    return None if precision == "float32" else before(method, "float32")[0]["image_features"]


def first_of_its_kind(target: Target) -> str:
    """Return the first target whose graphs are the same."""
    kind = (target.native_ops & set(LOWERINGS), target.opset)
    return next(name for name, other in TARGETS.items() if (other.native_ops & set(LOWERINGS), other.opset) == kind)


def compared(found: tuple[Arrays, list[Arrays]], wanted: tuple[Arrays, list[Arrays]]) -> list[Closeness]:
    pairs = zip((wanted[0], *wanted[1]), (found[0], *found[1]), strict=True)
    return [one for a, b in pairs for one in compare_outputs(a, b)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("target", "precision"),
    [
        (target, name)
        for target in TARGETS.values()
        for name, (dtype, *_) in PRECISIONS.items()
        if dtype in target.dtypes
    ],
    ids=lambda value: value.name if isinstance(value, Target) else value,
)
def test_lowered_graphs_say_the_same(target: Target, precision: str, method: str) -> None:
    dtype, int8, least = PRECISIONS[precision]
    like = TARGETS[first_of_its_kind(target)]
    for model, twin in zip(*(in_precision(method, dtype, int8=int8) for _ in range(2)), strict=True):
        lower(model, target)
        if target is not like:
            lower(twin, like)
            assert written(model) == written(twin)
        assert model.graph.opset_imports[""] == target.opset
        assert {node.op_type for node in model.graph} & set(LOWERINGS) <= target.native_ops
        assert not find_violations(model, target)
    found, exact = after(method, precision, like.name), before(method, "float32")
    same = compared(found, before(method, precision))
    if precision in SLACK:
        same = said(same)
        # ... so it must be hardly farther from float32 than before.
        lowest = [min(one.cosine for one in said(compared(a, exact))) for a in (found, before(method, precision))]
        assert lowest[0] > lowest[1] - SLACK[precision]
    assert min(one.cosine for one in same) >= least, same
    if precision == "float32":
        assert max(one.relative for one in same) < 1e-5
    elif not int8:
        close = compared(found, exact) if dtype == "float16" else said(compared(found, exact))
        assert all(one.holds(dtype) for one in close), close


def said(outputs: list[Closeness]) -> list[Closeness]:
    return [one for one in outputs if one.output in ("image_features", "logits")]


def written(model: ir.Model) -> list[str]:
    return [f"{node.op_type} {[v and v.name for v in node.inputs]} {node.attributes}" for node in model.graph]


def test_bfloat16_where_the_opset_has_it() -> None:
    for model in in_precision("fastv", "bfloat16"):
        lower(model, TARGETS["tensorrt-10.13"])
        onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
        softmax = [node.outputs[0].dtype for node in model.graph if node.op_type == "Softmax"]
        assert set(softmax) == {ir.DataType.FLOAT}


@pytest.mark.parametrize("method", METHODS)
def test_lowering_again_changes_nothing(method: str) -> None:
    for model in in_precision(method, "float16"):
        lower(model, TARGETS["tensorrt-10.3"])
        names = [node.name for node in model.graph]
        assert len(set(names)) == len(names)
        lower(model, TARGETS["tensorrt-10.3"])
        assert [node.name for node in model.graph] == names


def test_closeness_of_what_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match="output 'y': expected shape"):
        compare_outputs({"y": np.zeros(2)}, {"x": np.zeros(2)})
    nothing, same = compare_outputs({"a": np.zeros(2), "k": np.arange(2)}, {"a": np.zeros(2), "k": np.arange(2)})
    assert nothing.cosine == same.cosine == 1
    (broken,) = compare_outputs({"a": np.ones(2)}, {"a": np.array([1.0, np.nan])})
    assert not broken.holds("float16")
