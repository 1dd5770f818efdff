"""What ``ReduceVision`` refuses, and the promises that it keeps."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from cuts import cut_tower, picking, prune_tower
from towers import Tower

from lmmprune.errors import GraphRefusal
from lmmprune.passes.find.sites import VISION_OUTPUT, Site, vision_layer
from lmmprune.passes.graph.refusals import Broken
from lmmprune.passes.reduce.filters import cls_attention, last_query
from lmmprune.passes.reduce.reduce_vision import ReduceVision
from lmmprune.passes.reduce.rules import Reduce
from lmmprune.passes.reduce.stage import Stage


def test_a_pruned_graph_is_refused() -> None:
    tower = Tower()
    model = tower.graph()
    prune_tower(model, tower, "cls", 4)
    for keep in (4, 12):
        with pytest.raises(GraphRefusal, match="it is pruned"):
            prune_tower(model, tower, "cls", keep)


@pytest.mark.parametrize("keep", [0, 13])
def test_impossible_counts_are_refused(keep: int) -> None:
    with pytest.raises(
        GraphRefusal, match=rf"can't keep {keep} of 12 visual tokens at vision_output: expected 1\.\.12"
    ):
        cut_tower(Tower().graph(), Tower(), Stage(site=VISION_OUTPUT, keep=keep, rule=picking([0])))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([(vision_layer(1), 6), (VISION_OUTPUT, 7)], r"can't keep 7 of 6 visual tokens at vision_output"),
        ([(vision_layer(3), 6)], r"no site 'vision_layer_3': the encoder has layers 0\.\.2"),
    ],
)
def test_schedules_that_dont_fit_are_refused(stages: list[tuple[Site, int]], message: str) -> None:
    rows = [Stage(site=site, keep=keep, rule=picking(range(keep))) for site, keep in stages]
    with pytest.raises(GraphRefusal, match=message):
        cut_tower(Tower().graph(), Tower(), *rows)


def test_another_grid_is_refused() -> None:
    with pytest.raises(GraphRefusal, match=r"hands over 12 tokens, expected a grid of \(3, 5\)"):
        ReduceVision(method="cls", stages=(), grid=(3, 5))(Tower().graph())


def test_a_graph_without_attention_is_refused() -> None:
    model = Tower().graph()
    for node in model.graph:
        if node.op_type == "Attention":
            node.domain = "elsewhere"
    with pytest.raises(GraphRefusal, match="no Attention node"):
        prune_tower(model, Tower(), "cls", 4)


def test_a_graph_without_features_is_refused() -> None:
    model = Tower().graph()
    model.graph.outputs[0].name = "hidden"
    with pytest.raises(GraphRefusal, match=r"no 'image_features', found \['hidden'\]"):
        prune_tower(model, Tower(), "cls", 4)


def test_a_graph_that_hands_over_other_tokens_is_refused() -> None:
    model = Tower().graph()
    model.graph.initializers["end"].const_value = ir.Tensor(np.array([11], np.int64), name="end")
    patches = next(value for node in model.graph for value in node.outputs if value.name == "patches")
    patches.shape = ir.Shape([1, 10, 8])
    with pytest.raises(GraphRefusal, match="sees 13 tokens but 'patches' hands over 10"):
        prune_tower(model, Tower(), "cls", 4)


def test_a_layer_that_was_not_traced_is_refused() -> None:
    with pytest.raises(GraphRefusal, match=r"layer 3 isn't in the graph, which has 0\.\.2"):
        prune_tower(Tower().graph(), Tower(), "prumerge", 4)


def test_rules_that_need_what_an_encoder_lacks_are_refused() -> None:
    with pytest.raises(GraphRefusal, match="vision_output: there is no text in the encoder"):
        cut_tower(Tower().graph(), Tower(), Stage(site=VISION_OUTPUT, keep=5, rule=Reduce(filter=last_query)))
    tower = Tower(has_cls=False)
    with pytest.raises(GraphRefusal, match="vision_layer_1: this encoder has no CLS token"):
        cut_tower(tower.graph(), tower, Stage(site=vision_layer(1), keep=5, rule=Reduce(filter=cls_attention)))


def test_a_broken_promise_is_noticed() -> None:
    tower = Tower()
    model = cut_tower(tower.graph(), tower, Stage(site=vision_layer(1), keep=5, rule=picking(range(5))))
    promised = Stage(site=vision_layer(1), keep=4, rule=picking(range(4)))
    with pytest.raises(Broken, match="vision_layer_1 leaves 5 tokens, the schedule says 4"):
        ReduceVision(method="test", stages=[promised], grid=tower.grid).ensures(model)
    with pytest.raises(Broken, match="vision_output isn't in the graph, the schedule says that 4 tokens leave it"):
        ReduceVision(
            method="test", stages=[Stage(site=VISION_OUTPUT, keep=4, rule=promised.rule)], grid=tower.grid
        ).ensures(model)


def test_a_cut_that_is_missing_is_noticed() -> None:
    tower = Tower()
    model = cut_tower(tower.graph(), tower, Stage(site=vision_layer(0), keep=5, rule=picking(range(5))))
    promised = Stage(site=vision_layer(1), keep=5, rule=picking(range(5)))
    with pytest.raises(Broken, match="vision_layer_1"):
        ReduceVision(method="test", stages=[promised], grid=tower.grid).ensures(model)
