"""What engines need of every method's graphs: fused attention, plain operators, static shapes, scores in float32."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from cuts import DECODER, PREFIX, TOKENS, cut_tower, prune_tower
from decoders import cache_names
from one_picture import OF_ONE_PICTURE
from towers import Tower, run

from lmmprune.passes.find.sites import VISION_OUTPUT
from lmmprune.passes.graph.shapes import static_shape
from lmmprune.passes.lower.cast_float import CastFloat
from lmmprune.passes.methods import METHODS, get_method
from lmmprune.passes.methods.aim import merge_rounds
from lmmprune.passes.reduce.reduce_decoder import ReduceDecoder
from lmmprune.passes.reduce.select_before_layers import select_before_layers
from lmmprune.passes.reduce.stage import Stage

IN_VISION = [
    name for name in sorted(OF_ONE_PICTURE) if "vision" in METHODS[name].sites or "projector" in METHODS[name].sites
]
IN_DECODER = [name for name in sorted(METHODS) if "llm" in METHODS[name].sites]
# What engines lack, run on the host, or can't give a static shape.
UNWANTED = {"NonZero", "Compress", "Unique", "If", "Loop", "Scan", "GatherND", "GatherElements", "Einsum"}


@pytest.mark.parametrize(
    ("name", "has_cls"),
    [(name, has_cls) for name in IN_VISION for has_cls in (True, False) if has_cls or not METHODS[name].needs_cls],
)
def test_vision_graphs(name: str, has_cls: bool) -> None:
    """Every method: fused attention as before, static shapes, plain operators, TopK on floats, scores in float32."""
    tower = Tower(patches=16, heads=2, width=8, layers=4, has_cls=has_cls, next_layer=METHODS[name].next_layer)
    model = tower.graph()
    fused = {node.name: [v and v.name for v in node.inputs[:3]] for node in model.graph if node.op_type == "Attention"}
    if name == "aim":
        cut_tower(model, tower, Stage(site=VISION_OUTPUT, keep=5, rule=merge_rounds))
    else:
        prune_tower(model, tower, name, 5)
    exact = run(model, {"pixel_values": tower.inputs()})
    attention = [node for node in model.graph if node.op_type == "Attention"]
    assert len(attention) >= tower.layers
    for node in attention:
        read = list(node.inputs[:3])
        # FiCoCo-V asks the fused attention for its CLS column, too: wider values, and what was there comes first.
        wider = read[2] and read[2].producer()
        if name in ("ficoco-v", "ficoco-vl") and wider is not None and wider.op_type == "Concat":
            read[2] = wider.inputs[0]
        assert [value and value.name for value in read] == fused[node.name]
    ours = [node for node in model.graph if str(node.name).startswith("lmmprune/")]
    assert len(ours) > 2
    for node in model.graph:
        # Nothing depends on a value in a graph of static shapes.
        assert node.op_type not in UNWANTED | {"Range"}
        assert not node.op_type.startswith("Scatter")
        for value in node.outputs:
            static_shape(value)
        # TensorRT's TopK takes no int64, and no more than 3840 entries.
        assert node.op_type != "TopK" or node.inputs[0].dtype == ir.DataType.FLOAT  # type: ignore[union-attr]
    CastFloat(dtype="float16")(model)
    for node in model.graph:
        if str(node.name).startswith("lmmprune/") and node.op_type in ("Softmax", "TopK", "ReduceMean", "ReduceL2"):
            assert node.outputs[0].dtype == ir.DataType.FLOAT, node.name
    found = run(model, {"pixel_values": tower.inputs().astype(np.float16)})
    assert found["kept_indices"].tolist() == exact["kept_indices"].tolist()
    a, b = (array["image_features"].astype(np.float32).ravel() for array in (found, exact))
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.9999


def method_stages(name: str) -> tuple[tuple[Stage, ...], int]:
    """Return a method's stages in the decoder, and the visual tokens that enter it."""
    stages = get_method(name).plan(DECODER.facts(TOKENS), 5)
    entering = min((s.keep for s in stages if not s.site.in_decoder), default=TOKENS)
    return tuple(s for s in stages if s.site.in_decoder), entering


def check_decoder_nodes(model: ir.Model) -> None:
    for node in model.graph:
        assert node.op_type not in UNWANTED
        assert not node.op_type.startswith("Scatter")
        assert node.op_type != "TopK" or node.inputs[0].dtype == ir.DataType.FLOAT  # type: ignore[union-attr]


@pytest.mark.parametrize("name", IN_DECODER)
def test_decoder_graphs(name: str) -> None:
    """Every method: attention fused, no branches, no scatters, TopK on floats, outputs in their old order."""
    model = DECODER.graph()
    fused = {n.name: [v and v.name for v in n.inputs[:3]] for n in model.graph if n.op_type == "Attention"}
    stages, entering = method_stages(name)
    assert stages
    if stages[0].site.before_layers:
        chosen = select_before_layers(model, stages[0], method=name, image_tokens=entering, prefix=PREFIX)
        assert chosen is not None
        assert chosen.graph.outputs[1].name == f"kept_indices.{stages[0].site}"
        check_decoder_nodes(chosen)
        return
    ReduceDecoder(method=name, stages=stages, image_tokens=entering, prefix=PREFIX)(model)
    attention = [node for node in model.graph if node.op_type == "Attention"]
    assert {n.name: [v and v.name for v in n.inputs[:3]] for n in attention} == fused
    check_decoder_nodes(model)
    names = [value.name for value in model.graph.outputs]
    assert names[: 1 + 2 * DECODER.layers] == ["logits", *(n for pair in cache_names(DECODER.layers)[1] for n in pair)]
    assert {f"kept_indices.{s.site}" for s in stages} <= set(names)
