"""Pruned graphs of a small random model in any precision, and what they say in a prefill and decode steps."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
from random_models import SHAPES, canonical
from towers import session

from lmmprune.passes.graph.shapes import bind_dims, infer_shapes
from lmmprune.passes.int8.insert_qdq import InsertQdq, activations
from lmmprune.passes.lower.cast_float import CastFloat
from lmmprune.passes.methods import get_method
from lmmprune.passes.reduce.reduce_decoder import ReduceDecoder
from lmmprune.passes.reduce.reduce_vision import ReduceVision

Arrays = dict[str, np.ndarray]
# Two heads on one key head, a CLS token, three layers.
SHAPE = SHAPES[6]
PREFIX, KEEP, STEPS = 3, 24, 2
# Two of the three layers see everything where fastv and its kin cut; at 24 a near-tie of ficoco-l goes the other way in
# bfloat16; features of 20 numbers span 20 directions: what dpp picks behind them is rounding.
_LATE = dict.fromkeys(("fastv", "dart", "priortr", "sparsevlm", "v2drop"), 40)
_KEEP = {**_LATE, "ficoco-l": 28, "dpp": 16}
IMAGE, PICTURE = 3, (1, 3, 28, 28)


def picture() -> np.ndarray:
    return np.random.default_rng(7).standard_normal(PICTURE).astype(np.float32)


@functools.cache
def pruned(name: str) -> tuple[ir.Model, ir.Model, int]:
    """Return both float32 graphs with some of the tokens removed, and how many enter the decoder; clone them."""
    vision, decoder = (graph.clone() for graph in canonical(SHAPE))
    stages = get_method(name).plan(SHAPE.facts, _KEEP.get(name, KEEP))
    ReduceVision(method=name, stages=stages, grid=SHAPE.facts.grid)(vision)
    tokens = min((stage.keep for stage in stages if not stage.site.in_decoder), default=SHAPE.facts.tokens)
    bind_dims(decoder, {"image_tokens": tokens})
    ReduceDecoder(method=name, stages=stages, image_tokens=tokens, prefix=PREFIX, special_ids=(0, 1))(decoder)
    return vision, decoder, tokens


def in_precision(name: str, dtype: str, *, int8: bool = False) -> tuple[ir.Model, ir.Model]:
    """Return both graphs as ``export`` makes them for a target with the scheme s8s8, before lowering."""
    vision, decoder = _made(name, dtype, int8)
    return vision.clone(), decoder.clone()


@functools.cache
def _made(name: str, dtype: str, int8: bool) -> tuple[ir.Model, ir.Model]:
    vision, decoder, tokens = pruned(name)
    vision, decoder = vision.clone(), decoder.clone()
    if int8:
        seen = session(vision.clone())({"pixel_values": picture()})
        for model, feeds in ((vision, {"pixel_values": picture()}), (decoder, prompt(decoder, seen, tokens))):
            InsertQdq(scheme="s8s8", ranges=ranges(model, feeds), dtype=dtype)(model)
    if dtype != "float32":
        for model in (vision, decoder):
            CastFloat(dtype=dtype)(model)
    return vision, decoder


def ranges(model: ir.Model, feeds: Arrays) -> dict[str, tuple[float, float]]:
    """Calibrate on one input."""
    watched = model.clone()
    values = {v.name: v for v in watched.graph.inputs} | {o.name: o for n in watched.graph for o in n.outputs}
    names = activations(watched, "s8s8")
    have = {value.name for value in (*watched.graph.inputs, *watched.graph.outputs)}
    watched.graph.outputs.extend(values[name] for name in names if name not in have)
    found = session(watched)(feeds) | feeds
    return {name: (float(found[name].min()), float(found[name].max())) for name in names}


def prompt(decoder: ir.Model, seen: Arrays, tokens: int) -> Arrays:
    """Return the decoder's inputs for a prefill: three words, the picture, four words."""
    ids = np.array([[1, 8, 9, *[IMAGE] * tokens, 11, 5, 20, 7]], np.int64)
    features = seen["image_features"]
    cache = {
        str(value.name): np.zeros([1, value.shape[1], 0, value.shape[3]], features.dtype)  # type: ignore[index]
        for value in decoder.graph.inputs
        if str(value.name).startswith("past")
    }
    positions = np.arange(ids.shape[1], dtype=np.int64)[None]
    return {"input_ids": ids, "position_ids": positions, "image_features": features, **cache}


def answers(vision: ir.Model, decoder: ir.Model, features: np.ndarray | None = None) -> tuple[Arrays, list[Arrays]]:
    """Look at the picture, read the prompt and take some steps with the cache; return all outputs.

    Args:
        vision: The vision graph.
        decoder: The decoder graph.
        features: What the decoder sees; None: what this vision graph gives.
    """
    dtype = vision.graph.inputs[0].dtype
    assert dtype is not None
    seen = session(vision)({"pixel_values": picture().astype(dtype.numpy())})
    given = seen if features is None else {"image_features": features.astype(dtype.numpy())}
    return seen, list(said(session(decoder), prompt(decoder, given, given["image_features"].shape[1])))


def said(run: Callable[[Arrays], Arrays], feeds: Arrays) -> list[Arrays]:
    said = [run(feeds)]
    for step in range(STEPS):
        cache = {
            name.replace("present", "past_key_values"): array
            for name, array in said[-1].items()
            if name.startswith("present.")
        }
        place = feeds["position_ids"].shape[1] + step
        ids, positions = np.array([[12 + step]], np.int64), np.array([[place]], np.int64)
        said.append(run(feeds | {"input_ids": ids, "position_ids": positions} | cache))
    # What a cut kept means something in the prefill only.
    for step_outputs in said[1:]:
        for name in [name for name in step_outputs if name.startswith(("kept_indices", "received"))]:
            del step_outputs[name]
    return said


def lowered(model: ir.Model, rewrite: ir.passes.InPlacePass) -> ir.Model:
    """Check a graph, rewrite it, and see that a second time changes nothing."""
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    infer_shapes(model)
    assert rewrite(model).modified
    assert not rewrite(model).modified
    return model


def shown(model: ir.Model) -> list[str]:
    """Return the nodes in short: their outputs, operators and inputs, constants as numbers."""

    def short(value: ir.Value | None) -> str:
        if value is None:
            return ""
        if value.is_initializer() and str(value.name).startswith("lower/"):
            assert value.const_value is not None
            return str(value.const_value.numpy().tolist())
        return str(value.name).rsplit("/", 1)[-1].removesuffix("_out")

    return [
        f"{', '.join(map(short, node.outputs))} = {node.op_type}({', '.join(map(short, node.inputs))})"
        for node in model.graph
    ]
