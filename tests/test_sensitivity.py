"""The sensitivity scan: errors are those of one block alone, the planted bad block is found, the budget holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from random_models import SHAPES
from test_insert_qdq import calibrated
from test_smooth_quant import inputs, pruned
from towers import session

from lmmprune.compiler.quantize.sensitivity import Answer, relative_error, scan
from lmmprune.compiler.runtime.decode_steps import Steps
from lmmprune.errors import GraphRefusal
from lmmprune.passes.find.blocks import find_blocks
from lmmprune.passes.int8.insert_qdq import InsertQdq

SHAPE = SHAPES[0]


@pytest.fixture
def decoder(tmp_path: Path) -> tuple[Path, ir.Model, dict[str, np.ndarray]]:
    _, model, tokens = pruned(SHAPE, None)
    _, feeds = inputs(SHAPE, model, tokens)
    path = tmp_path / "decoder.onnx"
    ir.save(model, path, external_data="decoder.onnx.data")
    return path, model, feeds


def spoiled_ranges(model: ir.Model, feeds: dict[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """Ranges of which one, in front of ``layer_1.out``, is far too wide: its integers are all but zero."""
    ranges = calibrated(model, "s8s8", feeds)
    target = next(node for node, block in find_blocks(model).items() if block.name == "layer_1.out")
    return ranges | {str(target.inputs[0].name): (-1e3, 1e3)}


def samples(feeds: dict[str, np.ndarray]) -> list[Callable[[], Steps]]:
    def steps() -> Steps:
        yield feeds

    return [steps, steps]


def distance(model: ir.Model, feeds: dict[str, np.ndarray], exact: np.ndarray) -> float:
    return float(np.linalg.norm(session(model)(feeds)["logits"] - exact) / np.linalg.norm(exact))


def test_blocks_are_ranked_by_their_own_error_and_the_worst_stay_float(
    decoder: tuple[Path, ir.Model, dict[str, np.ndarray]],
) -> None:
    path, model, feeds = decoder
    ranges = spoiled_ranges(model, feeds)
    found = scan(path, "s8s8", ranges, samples(feeds), budget=0.999)
    names = {block.name for block in find_blocks(model).values()}
    assert found.errors.keys() == names
    assert list(found.errors.values()) == sorted(found.errors.values(), reverse=True)
    assert next(iter(found.errors)) == "layer_1.out"
    exact = session(model)(feeds)["logits"].astype(float)
    for name in ("layer_1.out", "layer_0.up", "lm_head"):
        alone = model.clone()
        InsertQdq(scheme="s8s8", ranges=ranges, keep_float=frozenset(names - {name}))(alone)
        assert distance(alone, feeds, exact) == pytest.approx(found.errors[name], rel=0.05)

    budget = (found.errors["layer_1.out"] + list(found.errors.values())[1]) / 2
    tight = scan(path, "s8s8", ranges, samples(feeds), budget=budget)
    assert "layer_1.out" in tight.keep_float
    assert len(tight.keep_float) < len(names)
    assert tight.error <= budget < tight.everything
    kept = model.clone()
    InsertQdq(scheme="s8s8", ranges=ranges, keep_float=frozenset(tight.keep_float))(kept)
    assert distance(kept, feeds, exact) == pytest.approx(tight.error, rel=0.05)
    assert list(tight.keep_float) == list(found.errors)[: len(tight.keep_float)]


def test_a_wide_budget_keeps_nothing(decoder: tuple[Path, ir.Model, dict[str, np.ndarray]]) -> None:
    path, model, feeds = decoder
    found = scan(path, "s8s8", calibrated(model, "s8s8", feeds), samples(feeds), budget=0.999)
    assert found.keep_float == ()
    assert found.error == found.everything
    assert sorted(path.parent.iterdir()) == [path, path.with_name("decoder.onnx.data")], "copies must not stay"


def test_an_unknown_block_is_refused(decoder: tuple[Path, ir.Model, dict[str, np.ndarray]]) -> None:
    _, model, feeds = decoder
    with pytest.raises(GraphRefusal, match=r"no block 'layer_9\.out' to keep in floating point: the graph has"):
        InsertQdq(scheme="s8s8", ranges=calibrated(model, "s8s8", feeds), keep_float=frozenset({"layer_9.out"}))(model)


def test_the_error_is_over_all_runs() -> None:
    rng = np.random.default_rng(0)
    exact = [rng.standard_normal((1, rows, 5)) for rows in (1, 7)]
    found = [array + 0.1 * rng.standard_normal(array.shape) for array in exact]
    a, b = (np.concatenate([array.ravel() for array in arrays]) for arrays in (found, exact))
    expected = np.linalg.norm(a - b) / np.linalg.norm(b)
    answers = [[Answer(values=array, places=None) for array in arrays] for arrays in (found, exact)]
    assert relative_error(*answers) == pytest.approx(expected, rel=1e-12)
    assert relative_error(answers[1], answers[1]) == 0


def test_tokens_that_only_one_graph_kept_are_no_error() -> None:
    rows = np.random.default_rng(1).standard_normal((2, 9, 4))
    kept = np.array([[0, 2, 5, 8], [1, 2, 3, 4]])
    other = np.array([[0, 3, 5, 8], [1, 2, 3, 4]])
    exact, found = (
        Answer(values=np.stack([rows[i][index[i]] for i in range(2)]), places=index) for index in (kept, other)
    )
    assert relative_error([found], [exact]) == 0
    moved = np.array(found.values)
    moved[0, 2] *= 1.5  # place 5, which both kept
    common = np.concatenate([rows[0][[0, 5, 8]], rows[1][kept[1]]])
    expected = np.linalg.norm(0.5 * rows[0][5]) / np.linalg.norm(common)
    assert relative_error([Answer(values=moved, places=other)], [exact]) == pytest.approx(expected, rel=1e-12)
