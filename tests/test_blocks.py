"""Blocks: every weight has a role and a layer, the same with and without cuts."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir
import pytest
from one_picture import OF_ONE_PICTURE
from random_models import SHAPES, Shape, canonical
from test_smooth_quant import pruned

from lmmprune.passes.find.blocks import find_blocks, weighted
from lmmprune.passes.int8.insert_qdq import InsertQdq


def expected(layers: int, last: str, *, gated: bool) -> Counter[str]:
    roles = {"qkv": 3, "out": 1, "up": 2 if gated else 1, "down": 1}
    found = Counter({f"layer_{layer}.{role}": count for layer in range(layers) for role, count in roles.items()})
    return found + Counter({last: 1 if last == "lm_head" else 2})


def names(model: ir.Model) -> Counter[str]:
    return Counter(block.name for block in find_blocks(model).values())


@pytest.mark.parametrize("shape", SHAPES[::2], ids=lambda shape: f"shape{shape.seed}")
def test_canonical_graphs(shape: Shape) -> None:
    vision, decoder = canonical(shape)
    # The trace goes one layer beyond the features.
    assert names(vision) == expected(shape.vision_layers, "projector", gated=False) + Counter({"patch": 1})
    assert names(decoder) == expected(shape.llm_layers, "lm_head", gated=True)


@pytest.mark.parametrize("method", OF_ONE_PICTURE)
def test_cuts_change_no_role(method: str) -> None:
    shape = SHAPES[4]
    vision, decoder, _ = pruned(shape, method)
    # A layer whose q and k are scored in front of its cut has them twice.
    twice = names(decoder) - names(canonical(shape)[1])
    assert all(name.endswith(".score") for name in twice)
    assert bool(twice) == (method == "pyramiddrop")
    assert names(canonical(shape)[1]) - names(decoder) == Counter()
    # The layer beyond the features is gone, unless the method's score reads a part of it.
    extra = names(vision) - (expected(shape.vision_layers - 1, "projector", gated=False) + Counter({"patch": 1}))
    assert set(extra) <= {f"layer_{shape.vision_layers - 2}.score"}
    assert bool(extra) == (method in {"prumerge", "prumerge+"})


@pytest.mark.parametrize("scheme", ["u8s8-dynamic", "s8-weights"])
def test_quantizing_changes_no_role(scheme: str) -> None:
    for model in pruned(SHAPES[4], "ficoco-l")[:2]:
        expected_names = names(model)
        InsertQdq(scheme=scheme)(model)
        assert names(model) == expected_names


def test_scores_have_no_block() -> None:
    vision, decoder, _ = pruned(SHAPES[4], "ficoco-vl")
    for model in (vision, decoder):
        assert not any(str(node.name).startswith("lmmprune/") for node in weighted(model))
