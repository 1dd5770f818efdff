"""What the methods write into a graph consists of operators that TensorRT 10.3's parser reads."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest
from one_picture import OF_ONE_PICTURE
from random_models import SHAPES, canonical

from lmmprune.compiler.targets.operators import CONSTANT_INPUTS, FLOAT_ONLY, MOST_SORTED, TENSORRT
from lmmprune.passes.methods import METHODS
from lmmprune.passes.reduce.reduce_decoder import ReduceDecoder
from lmmprune.passes.reduce.reduce_vision import ReduceVision
from lmmprune.passes.reduce.select_before_layers import select_before_layers

SHAPE = SHAPES[0]
_FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16}
# Lowering turns these into primitives; a method writes none of its own.
_HIGH_LEVEL = {"Attention", "RMSNormalization", "RotaryEmbedding", "LayerNormalization", "Gelu"}


# What the defaults leave out on so small a grid.
OPTIONS: dict[str, dict[str, Any]] = {"inflection": {"prune_text": 2}, "ficoco-vl": {"targets": "quantile"}}


def rewritten(name: str) -> list[ir.Model]:
    """The graphs of a model that a method writes into, with half of its tokens removed."""
    method = METHODS[name](**OPTIONS.get(name, {}))
    # Of three layers two see everything where one inside the decoder is scored.
    stages = method.plan(SHAPE.facts, 12 if "llm_input" in method.sites else 8)
    vision, decoder = (graph.clone() for graph in canonical(SHAPE))
    ReduceVision(method=name, stages=stages, grid=SHAPE.facts.grid)(vision)
    tokens = min((stage.keep for stage in stages if not stage.site.in_decoder), default=SHAPE.facts.tokens)
    if stages[0].site.before_layers:
        selection = select_before_layers(decoder, stages[0], method=name, image_tokens=tokens, prefix=3)
        assert selection is not None
        return [selection]
    ReduceDecoder(method=name, stages=stages, image_tokens=tokens, prefix=3, special_ids=(0, 1))(decoder)
    return [vision, decoder]


@pytest.mark.parametrize("name", sorted(OF_ONE_PICTURE))
def test_a_method_needs_only_what_tensorrt_10_3_reads(name: str) -> None:
    for model in rewritten(name):
        for node in model.graph:
            ours = str(node.name).startswith("lmmprune/")
            # pyramiddrop writes a part of the model's own layer a second time, which is lowered like the first.
            theirs = not ours or name == "pyramiddrop"
            assert node.op_type in TENSORRT or (node.op_type in _HIGH_LEVEL and theirs), node.name
            if not ours:
                continue
            first = node.inputs[0]
            assert first is not None
            if node.op_type in FLOAT_ONLY:
                assert first.dtype in _FLOATS, node
            for index in CONSTANT_INPUTS.get(node.op_type, ()):
                value = node.inputs[index] if index < len(node.inputs) else None
                assert value is None or value.is_initializer(), node
            if node.op_type == "TopK":
                count = node.inputs[1]
                assert count is not None
                assert count.const_value is not None
                assert int(count.const_value.numpy()[0]) <= MOST_SORTED
