"""Constants that spell out token counts are made to follow the tokens, and no value changes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from towers import Tower, run

from lmmprune.passes.graph.shapes import infer_shapes
from lmmprune.passes.reduce.rewire import relax_shapes


def test_relaxing_needs_no_names() -> None:
    text = """<ir_version: 10, opset_import: ["" : 23]>
    g (float[1,6,4] x) => (float[1,6,4] y) <int64[4] split = {1, 6, 2, 2}, int64[3] join = {1, 6, 4}> {
        halves = Reshape (x, split)
        y = Reshape (halves, join)
    }"""
    model = ir.from_onnx_text(text)
    infer_shapes(model)
    relax_shapes(model)
    x = np.arange(24, dtype=np.float32).reshape(1, 6, 4)
    np.testing.assert_array_equal(run(model, {"x": x})["y"], x)


@pytest.mark.parametrize("has_cls", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
def test_relaxing_a_tower_changes_no_value(has_cls: bool, batch: int) -> None:
    tower = Tower(batch=batch, has_cls=has_cls)
    plain, model = tower.graph(), tower.graph()
    relax_shapes(model)
    targets = [n.inputs[1].const_value.numpy().tolist() for n in model.graph if n.op_type == "Reshape"]  # type: ignore[union-attr]
    assert {0, -1, tower.heads, tower.width} >= {size for target in targets for size in target}
    given = {"pixel_values": tower.inputs()}
    np.testing.assert_array_equal(run(model, given)["image_features"], run(plain, given)["image_features"])


def reshaped(target: list[int], source: list[int]) -> ir.Model:
    text = f"""<ir_version: 10, opset_import: ["" : 23]>
    g (float{source} x) => (float{target} y) <int64[{len(target)}] shape = {{{",".join(map(str, target))}}}> {{
        [node] y = Reshape (x, shape)
    }}"""
    return ir.from_onnx_text(text)


@settings(max_examples=150, deadline=None)
@given(factors=st.lists(st.integers(1, 4), min_size=1, max_size=5), data=st.data())
def test_a_relaxed_reshape_gives_the_same(factors: list[int], data: st.DataObject) -> None:
    """Any grouping of the same factors into axes, with axes of one among them."""

    def grouped() -> list[int]:
        borders = sorted(data.draw(st.lists(st.integers(0, len(factors)), max_size=3)))
        return [int(np.prod(factors[a:b])) for a, b in zip([0, *borders], [*borders, len(factors)], strict=True)]

    source, target = grouped(), grouped()
    model = reshaped(target, source)
    relax_shapes(model)
    x = np.arange(np.prod(source), dtype=np.float32).reshape(source)
    np.testing.assert_array_equal(run(model, {"x": x})["y"], x.reshape(target))


def sliced(shape: list[int], begin: int, end: int, axis: int, step: int) -> ir.Model:
    text = f"""<ir_version: 10, opset_import: ["" : 23]>
    g (float{shape} x) => (float[{",".join(f"d{i}" for i in range(len(shape)))}] y)
    <int64[1] begin = {{{begin}}}, int64[1] end = {{{end}}}, int64[1] axis = {{{axis}}}, int64[1] step = {{{step}}}> {{
        [node] y = Slice (x, begin, end, axis, step)
    }}"""
    return ir.from_onnx_text(text)


@settings(max_examples=150, deadline=None)
@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    begin=st.integers(-8, 8),
    end=st.integers(-8, 8),
    step=st.sampled_from([1, 2]),
    data=st.data(),
)
def test_a_relaxed_slice_gives_the_same(shape: list[int], begin: int, end: int, step: int, data: st.DataObject) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    model = sliced(shape, begin, end, axis, step)
    relax_shapes(model)
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    index = [slice(None)] * len(shape)
    index[axis] = slice(begin, end, step)
    np.testing.assert_array_equal(run(model, {"x": x})["y"], x[tuple(index)])


def test_a_slice_that_runs_backwards_gives_the_same() -> None:
    model = sliced([3], 0, 3, 0, -2)
    relax_shapes(model)
    assert run(model, {"x": np.arange(3, dtype=np.float32)})["y"].tolist() == []
