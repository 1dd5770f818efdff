"""A foreign tower in the form of the canonical vision graph, and back: what is found, what is kept, what is refused."""

from __future__ import annotations

from pathlib import Path

import foreign_towers as ft
import numpy as np
import onnx_ir as ir
import pytest
from towers import Tower, run

from lmmprune.compiler.rewrite.canonicalize_foreign import canonicalize_foreign
from lmmprune.errors import GraphRefusal
from lmmprune.passes.find.anchors import find_vision_anchors
from lmmprune.passes.foreign.expose_patches import ExposePatches, JoinTokens
from lmmprune.passes.foreign.find_features import find_features, find_grid

GRID = (ft.GRID, ft.GRID)


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ir.Model]:
    folder = tmp_path_factory.mktemp("towers")
    sizes = {"batch": 2, "image_size": (ft.SIDE, ft.SIDE)}
    return {
        kind: canonicalize_foreign(ft.saved(folder, ft.exported(kind, hidden_states=kind == "clip")), **sizes).model  # type: ignore[arg-type]
        for kind in ("clip", "siglip")
    }


def swapped(model: ir.Model, lengths: list[int]) -> ir.Model:
    """Return the tower with the inputs of its CLS Concat in another order, or one of them again."""
    (concat,) = (node for node in model.graph if node.op_type == "Concat")
    inputs = list(concat.inputs)
    for place, index in enumerate(lengths):
        concat.replace_input_with(place, inputs[index])
    return model


def test_what_a_tower_offers(towers: dict[str, ir.Model]) -> None:
    clip, siglip = (find_features(towers[kind], grid=find_grid(towers[kind])) for kind in ("clip", "siglip"))
    assert (clip.output.name, clip.depth, clip.has_cls, clip.grid) == ("last_hidden_state", ft.LAYERS, True, GRID)
    assert (siglip.output.name, siglip.depth, siglip.has_cls) == ("last_hidden_state", ft.LAYERS, False)
    assert clip.dropped == dict.fromkeys(
        [f"hidden_states.{i}" for i in range(ft.LAYERS)], "it reads tokens that are removed"
    )
    assert siglip.dropped == {"pooler_output": "it reads tokens that are removed"}
    earlier = find_features(towers["clip"], grid=GRID, layer=-2)
    assert (earlier.depth, earlier.moved) == (ft.LAYERS - 1, True)
    assert earlier.dropped["pooler_output"] == "it is computed behind the feature layer"


@pytest.mark.parametrize("layer", [None, -2])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_there_and_back_changes_no_value(kind: str, layer: int | None, towers: dict[str, ir.Model]) -> None:
    model = towers[kind].clone()
    before = run(model, {"pixel_values": ft.pixels(2).numpy()})
    expose = ExposePatches(output="last_hidden_state", layer=layer, grid=GRID, next_layer=layer is not None)
    assert expose(model).modified
    anchors = find_vision_anchors(model)
    assert (anchors.tokens, anchors.has_cls) == (ft.N, kind == "clip")
    assert anchors.depth == ft.LAYERS + (0 if layer is None else 1 + layer)
    assert len(anchors.layers) == ft.LAYERS
    assert not expose(model).modified
    names = {value.name for value in model.graph.outputs}
    assert ("next_layer_features" in names) == (layer is not None)
    for value in [value for value in model.graph.outputs if value.name == "next_layer_features"]:
        model.graph.outputs.remove(value)
    join = JoinTokens(output="last_hidden_state")
    assert join(model).modified
    assert not join(model).modified
    found = run(model, {"pixel_values": ft.pixels(2).numpy()})
    assert list(found) == ["last_hidden_state"] + ["pooler_output"] * (kind == "clip" and layer is None)
    wanted = before if layer is None else {"last_hidden_state": hidden_state(kind, layer)}
    for name, array in found.items():
        np.testing.assert_allclose(array, wanted[name], atol=0 if layer is None else 1e-5)


def hidden_state(kind: str, layer: int) -> np.ndarray:
    states = ft.tower(kind)(ft.pixels(2), output_hidden_states=True).hidden_states
    return np.asarray(states[layer].detach().numpy())


def test_cls_behind_the_patches_is_refused(towers: dict[str, ir.Model]) -> None:
    with pytest.raises(GraphRefusal, match="puts the additional token behind the patches: expected CLS at row 0"):
        find_features(swapped(towers["clip"].clone(), [1, 0]), grid=GRID)


def test_a_token_of_unknown_place_is_refused() -> None:
    tower = Tower(patches=12)
    with pytest.raises(GraphRefusal, match="looked for the Concat of CLS with 12 patches, found none"):
        find_features(tower.graph(), grid=(3, 4))
    with pytest.raises(GraphRefusal, match="the tower has 13 tokens on a grid of 11 patches: expected as many, or one"):
        find_features(tower.graph(), grid=(1, 11))
    with pytest.raises(GraphRefusal, match="looked for the one Conv that embeds the patches, found 0: give --grid"):
        find_grid(tower.graph())


def test_an_output_that_reads_cls_in_other_words_stays(tmp_path: Path) -> None:
    """The newer exporter takes row 0 with a Gather or a Slice; a mean over all rows isn't CLS."""
    model = canonicalize_foreign(ft.saved(tmp_path, ft.exported("clip")), batch=1, image_size=(ft.SIDE, ft.SIDE)).model
    tokens = model.graph.outputs[0]
    numbers = {name: ir.tensor(np.array([value], np.int64), name=name) for name, value in (("zero", 0), ("one", 1))}
    made = {name: ir.Value(name=name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype))
            for name, tensor in numbers.items()}  # fmt: skip
    for value in made.values():
        model.graph.register_initializer(value)
    zero, one = made["zero"], made["one"]
    for name, node in {
        "sliced": ir.node("Slice", [tokens, zero, one, one]),
        "second": ir.node("Slice", [tokens, one, one, one]),
        "averaged": ir.node("ReduceMean", [tokens, one]),
    }.items():
        model.graph.append(node)
        node.outputs[0].name = name
        model.graph.outputs.append(node.outputs[0])
    found = find_features(model, grid=GRID, output="last_hidden_state")
    assert sorted(found.dropped) == ["averaged", "second"]
