"""Selection at the vision output: the kept set equals the formula's, the features are the kept rows."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from towers import Tower, run

from lmmprune.errors import GraphRefusal, InputError
from lmmprune.passes.methods import METHODS, get_method, keep_count
from lmmprune.passes.methods.freepruner import FreePruner
from lmmprune.passes.select_tokens import SelectTokens


def top(scores: np.ndarray, count: int) -> list[int]:
    """Largest first, the lower index on ties."""
    return sorted(range(len(scores)), key=lambda j: (-scores[j], j))[:count]


def expected(name: str, tower: Tower, keep: int, picture: int, method: object) -> list[int]:
    """The formulas of METHODS, written with sums over single entries."""
    attentions = [layer[picture] for layer in tower.attentions()]
    first, n = int(tower.has_cls), tower.patches
    last = attentions[-1]
    if name == "cls":
        return top(last[:, 0, 1:].mean(axis=0), keep)
    if name == "random":
        return list(np.random.default_rng(0).permutation(n)[:keep])
    if name == "uniform":
        return [int(np.floor((i + 0.5) * n / keep)) for i in range(keep)]
    assert isinstance(method, FreePruner)
    received = np.array(
        [sum(last[:, i, j].mean() for i in range(tower.tokens) if i != j) for j in range(first, n + first)]
    )
    pivots = top(received, max(1, round(method.pivot_fraction * keep)))
    shallow = attentions[method.shallow_layer]
    rest = np.array([np.mean([shallow[:, p + first, j + first].mean() for p in pivots]) for j in range(n)])
    rest[pivots] = -np.inf
    return pivots + top(rest, keep - len(pivots))


towers = st.builds(
    Tower,
    batch=st.integers(1, 4),
    patches=st.integers(4, 30),
    has_cls=st.booleans(),
    heads=st.integers(1, 3),
    width=st.sampled_from([1, 3, 4, 5, 8]),
    layers=st.integers(2, 4),
    seed=st.integers(0, 10_000),
)


# Shrinking costs minutes of graph building and the configuration is small as it is.
@settings(max_examples=160, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(tower=towers, ratio=st.floats(0.05, 0.95), name=st.sampled_from(sorted(METHODS)), fraction=st.floats(0.1, 1))
def test_kept_indices_and_features_equal_the_formula(tower: Tower, ratio: float, name: str, fraction: float) -> None:
    keep = max(1, tower.patches - round(ratio * tower.patches))
    if name == "cls" and not tower.has_cls:
        with pytest.raises(GraphRefusal, match="needs a CLS token"):
            SelectTokens(method=get_method(name), keep=1)(tower.graph())
        return
    options = {"pivot_fraction": str(fraction)} if name == "freepruner" else {}
    method = get_method(name, options)
    model = tower.graph()
    result = SelectTokens(method=method, keep=keep)(model)
    assert result.modified == (keep < tower.patches)
    found = run(model, {"pixel_values": tower.inputs()})
    if keep == tower.patches:
        assert "kept_indices" not in found
        return
    assert found["kept_indices"].dtype == np.int64
    for picture in range(tower.batch):
        wanted = sorted(expected(name, tower, keep, picture, method))
        assert found["kept_indices"][picture].tolist() == wanted
        np.testing.assert_allclose(
            found["image_features"][picture], tower.features()[picture][wanted], rtol=1e-4, atol=1e-4
        )


def test_nothing_removed_is_the_same_graph() -> None:
    model = Tower().graph()
    before = ir.serde.serialize_model(model).SerializeToString()
    assert not SelectTokens(method=get_method("freepruner"), keep=12)(model).modified
    assert ir.serde.serialize_model(model).SerializeToString() == before


def test_a_pruned_graph_is_refused() -> None:
    model = Tower().graph()
    SelectTokens(method=get_method("cls"), keep=4)(model)
    with pytest.raises(GraphRefusal, match="it is pruned"):
        SelectTokens(method=get_method("cls"), keep=4)(model)


def test_ties_go_to_the_lower_index() -> None:
    tower = Tower(patches=10)
    model = tower.graph()
    # Without queries every logit is zero and every score ties.
    model.graph.initializers["q2"].const_value = ir.Tensor(np.zeros((8, 8), np.float32), name="q2")
    SelectTokens(method=get_method("cls"), keep=4)(model)
    assert run(model, {"pixel_values": tower.inputs()})["kept_indices"].tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("keep", [0, 13])
def test_impossible_counts_are_refused(keep: int) -> None:
    with pytest.raises(GraphRefusal, match=r"expected 1\.\.12"):
        SelectTokens(method=get_method("cls"), keep=keep)(Tower().graph())


def test_a_graph_without_attention_is_refused() -> None:
    model = Tower().graph()
    for node in model.graph:
        if node.op_type == "Attention":
            node.domain = "elsewhere"
    with pytest.raises(GraphRefusal, match="no Attention node"):
        SelectTokens(method=get_method("cls"), keep=4)(model)


def test_a_graph_without_features_is_refused() -> None:
    model = Tower().graph()
    model.graph.outputs[0].name = "hidden"
    with pytest.raises(GraphRefusal, match="no output 'image_features'"):
        SelectTokens(method=get_method("cls"), keep=4)(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pivot_fraction": "0"}, "expected 0 < value <= 1"),
        ({"shallow_layer": "3"}, "layers 0..2"),
        ({"shalow_layer": "1"}, "did you mean 'shallow_layer'"),
        ({"shallow_layer": "one"}, "expected a value of type int"),
    ],
)
def test_bad_options_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SelectTokens(method=get_method("freepruner", options), keep=4)(Tower().graph())


@pytest.mark.parametrize(
    ("tokens", "arguments", "kept"),
    [
        (144, {"ratio": 0.5}, 72),
        (576, {"ratio": 0.75}, 144),
        (576, {"keep": 64}, 64),
        (144, {}, 144),
        (10, {"ratio": 0.9}, 1),
    ],
)
def test_keep_count(tokens: int, arguments: dict[str, float], kept: int) -> None:
    assert keep_count(tokens, **arguments) == kept  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratio": 1.0}, "0 <= ratio < 1"),
        ({"ratio": -0.1}, "0 <= ratio < 1"),
        ({"ratio": float("nan")}, "0 <= ratio < 1"),
        ({"ratio": 0.96}, "leaves none"),
        ({"keep": 11}, "give 1..10"),
        ({"keep": 0}, "give 1..10"),
        ({"ratio": 0.5, "keep": 3}, "exclude each other"),
    ],
)
def test_keep_count_refuses(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        keep_count(10, **arguments)  # type: ignore[arg-type]
