"""Cuts that the layer behind them scores: the same as that layer's own q and k in the graph without cuts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import random_qwen
from exports import TRACED
from random_models import SHAPES, canonical
from random_shuffles import save_internvl
from towers import run

from lmmprune.models.source import resolve
from lmmprune.passes.find.anchors import find_decoder_anchors
from lmmprune.passes.find.blocks import find_blocks
from lmmprune.passes.find.sites import llm_input, llm_layer
from lmmprune.passes.graph.refusals import Refused
from lmmprune.passes.lower.cast_float import CastFloat
from lmmprune.passes.methods import get_method
from lmmprune.passes.reduce.own_layer import written_again
from lmmprune.passes.reduce.reduce_decoder import ReduceDecoder
from lmmprune.passes.reduce.stage import Stage

PREFIX, TOKENS, TAIL = 2, 12, 5
RULE = get_method("pyramiddrop").rule()


def decoder(kind: str, folder: Path) -> tuple[ir.Model, int]:
    """Return a family's decoder, not pruned, and the id of its placeholder."""
    if kind == "llava, grouped keys":
        return canonical(SHAPES[1])[1].clone(), 3
    if kind == "internvl, biases":
        save_internvl(folder, "qwen2")
    else:
        folder = random_qwen.checkpoint(kind)
    image = json.loads((folder / "config.json").read_text())["image_token_id"]
    return TRACED(resolve(str(folder))).decoder.clone(), image


def prefill(model: ir.Model, image: int) -> dict[str, np.ndarray]:
    """Return the inputs of a prompt: an odd one out in every number that M-RoPE has."""
    rng, length = np.random.default_rng(3), PREFIX + TOKENS + TAIL
    found = {}
    for value in model.graph.inputs:
        assert value.shape is not None
        shape = [dim if isinstance(dim, int) else None for dim in value.shape]
        if value.name == "input_ids":
            found[value.name] = np.array([[7] * PREFIX + [image] * TOKENS + [8, 9, 10, 11, 12]])
        elif value.name == "position_ids":
            rows = np.broadcast_to(np.arange(length), [dim or length for dim in shape]).copy()
            if len(shape) == 3:
                rows[1, 0, PREFIX : PREFIX + TOKENS] = PREFIX + np.arange(TOKENS) // 4
                rows[2, 0, PREFIX : PREFIX + TOKENS] = PREFIX + np.arange(TOKENS) % 4
            found[value.name] = rows
        elif value.name == "image_features":
            found[value.name] = rng.standard_normal((1, TOKENS, shape[2])).astype(np.float32)  # type: ignore[arg-type]
        else:
            found[str(value.name)] = np.zeros([dim or 0 for dim in shape], np.float32)
    return found


def last_row(q: np.ndarray, k: np.ndarray, scale: float) -> np.ndarray:
    """Return ``mean_h softmax(q_last . k)``, ``[T]``."""
    logits = scale * np.einsum(
        "hd,htd->ht", q[0, :, -1].astype(np.float64), np.repeat(k[0], q.shape[1] // k.shape[1], 0)
    )
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray((weights / weights.sum(-1, keepdims=True)).mean(0))


KINDS = ["llava, grouped keys", "internvl, biases", *random_qwen.FAMILIES]


@pytest.mark.parametrize("kind", KINDS)
def test_the_scores_are_those_of_the_layer_behind_the_cut(kind: str, tmp_path: Path) -> None:
    """The uncut graph's layer l sees what enters the cut in front of it, so its q and k say what is to be kept."""
    plain, image = decoder(kind, tmp_path)
    layers = find_decoder_anchors(plain).layers
    for layer in range(1, len(layers)):
        whole = plain.clone()
        twin = find_decoder_anchors(whole).layers[layer]
        whole.graph.outputs.extend([twin.q, twin.k])
        given = prefill(plain, image)
        seen = run(whole, given)
        row = last_row(seen[str(twin.q.name)], seen[str(twin.k.name)], twin.scale)[PREFIX : PREFIX + TOKENS]
        assert np.diff(np.sort(row)).min() > 1e-6, "a near-tie says nothing"

        cut = plain.clone()
        stages = [Stage(site=llm_input(layer), keep=5, rule=RULE)]
        ReduceDecoder(method="pyramiddrop", stages=stages, image_tokens=TOKENS, prefix=PREFIX)(cut)
        found = run(cut, given)
        assert found[f"kept_indices.llm_input_{layer}"][0].tolist() == sorted(np.argsort(-row)[:5].tolist())


def test_attention_stays_fused_and_weights_are_shared() -> None:
    plain = canonical(SHAPES[0])[1]
    cut = plain.clone()
    stages = [Stage(site=llm_input(1), keep=7, rule=RULE), Stage(site=llm_input(2), keep=3, rule=RULE)]
    ReduceDecoder(method="pyramiddrop", stages=stages, image_tokens=16, prefix=2)(cut)

    def count(model: ir.Model, kind: str) -> int:
        return sum(node.op_type == kind for node in model.graph)

    assert count(cut, "Attention") == count(plain, "Attention")
    assert count(cut, "Softmax") == count(plain, "Softmax") + 2
    weights = {name for name in plain.graph.initializers if ".weight" in name}
    assert {name for name in cut.graph.initializers if ".weight" in name} == weights
    # q of one row and k of all of them at each of the two cuts; INT8 leaves them alone as it does all scores.
    assert [block.name for block in find_blocks(cut).values() if block.role == "score"] == ["layer_0.score"] * 2 + [
        "layer_1.score"
    ] * 2


def test_half_precision_scores_what_the_layer_computes() -> None:
    """q and k are half precision as in the layer; what is made of them isn't."""
    cut = canonical(SHAPES[0])[1].clone()
    ReduceDecoder(
        method="pyramiddrop", stages=[Stage(site=llm_input(1), keep=7, rule=RULE)], image_tokens=16, prefix=2
    )(cut)
    CastFloat(dtype="float16")(cut)
    mine = [node for node in cut.graph if node.name and "llm_input_1/" in node.name]
    kinds = {kind: {node.outputs[0].dtype for node in mine if node.op_type == kind} for kind in ("Softmax", "TopK")}
    assert kinds == {"Softmax": {ir.DataType.FLOAT}, "TopK": {ir.DataType.FLOAT}}
    rotated = {node.outputs[0].dtype for node in mine if node.op_type == "RotaryEmbedding"}
    assert rotated == {ir.DataType.FLOAT16}


def test_what_has_no_layer_behind_it_is_refused() -> None:
    shape = SHAPES[0]
    cut = ReduceDecoder(method="t", stages=[Stage(site=llm_layer(1), keep=7, rule=RULE)], image_tokens=16, prefix=2)
    with pytest.raises(Refused, match="llm_layer_1: no decoder layer is in front of this site's cut"):
        cut(canonical(shape)[1].clone())
    anchors = find_decoder_anchors(canonical(shape)[1])
    with pytest.raises(Refused, match="doesn't depend on the stream"):
        written_again(None, anchors.input_ids, {anchors.embeds: anchors.embeds})  # type: ignore[arg-type]  # unused
