"""What a graph looks like to the passes: inputs, outputs, operators, attention layers, sites, cache."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from pathlib import Path
from typing import Any

from lmmprune.compiler.bundle.manifest import Graph
from lmmprune.compiler.onnx_files.load_onnx import load_onnx
from lmmprune.errors import BundleError, GraphRefusal, one_line, require
from lmmprune.names import LOGITS, METHOD, SITE, kept_output, received_at

# What the passes' finders, made for graphs that fit together, run into where one was edited.
_MISREAD = (AssertionError, AttributeError, LookupError, StopIteration, TypeError, ValueError)


def inspect_graph(
    path: Path,
    *,
    scheme: str | None = None,
    image_size: tuple[int, int] | None = None,
    expected: Graph | None = None,
) -> dict[str, Any]:
    """Describe an ONNX file without reading its weights.

    Args:
        path: The file.
        scheme: Scheme whose rules a quantized graph shall follow; None takes the one that it looks like.
        image_size: Height and width in pixels, where another exporter's tower leaves them open.
        expected: What a bundle's manifest says of its inputs and outputs; None: nothing does.

    Returns:
        Among others ``sites``, where its tokens are cut, in the order in which a token meets them; ``anchors``, what an
        unpruned graph offers to a method (or why nothing, under ``refusal``; None for a pruned graph), to which command
        alone under ``command``, if another exporter wrote it; and ``cache``, the layers of a decoder whose caches have
        the same length.

    Raises:
        InputError: It can't be read as ONNX.
        BundleError: It isn't as expected.
    """
    require("onnx_ir", "export")
    model = load_onnx(path, expected=expected)
    try:
        return _described(model, path, scheme, image_size)
    except _MISREAD as error:
        said = one_line(f"{type(error).__name__} {error}".strip(), 120)
        raise BundleError(
            f"'{path}' can be read, but doesn't hang together ({said}): check it with onnx.checker, or make it anew"
        ) from error


def _described(model: Any, path: Path, scheme: str | None, image_size: tuple[int, int] | None) -> dict[str, Any]:
    from lmmprune.compiler.inspect.foreign import foreign_anchors, is_picture_graph
    from lmmprune.compiler.inspect.int8 import describe_int8, kind_of_weight
    from lmmprune.passes.find.blocks import weighted
    from lmmprune.passes.graph.standard_operators import as_attentions

    operators = Counter(node.op_type for node in model.graph)
    sites = _sites(model)
    int8 = describe_int8(model, scheme)
    stored = Counter(kind_of_weight(node) for node in weighted(model))
    standard = model.clone()
    as_attentions(standard)
    anchors = None if sites else _anchors(standard, quantized=int8["scheme"] is not None)
    layers = _attention_layers(standard)
    if anchors is not None and "refusal" in anchors and int8["scheme"] is None and is_picture_graph(model):
        offer, found, refusal = foreign_anchors(path, image_size)
        anchors, layers = offer or {"refusal": refusal}, found or layers
    return {
        "file": str(path),
        "opset": model.opset_imports.get(""),
        "inputs": [_value(value) for value in model.graph.inputs],
        "outputs": [_value(value) for value in model.graph.outputs],
        "operators": dict(operators.most_common()),
        "weights": {"count": len(model.graph.initializers), "bytes": _bytes(model)},
        "int4_matmuls": stored["int4"],
        "int8_matmuls": stored["int8"],
        "float_matmuls": stored["float"],
        "int8": int8,
        "sites": sites,
        "anchors": anchors,
        "cache": _cache(model),
        "attention_layers": layers,
    }


def _sites(model: Any) -> list[dict[str, Any]]:
    """Return every site where tokens are cut, with the tokens that leave it (None: as many as a bucket takes)."""
    from lmmprune.passes.find.sites import parse_site

    found: dict[str, dict[str, Any]] = {}
    outputs = {str(value.name): value for value in model.graph.outputs}
    for node in model.graph:
        method, site = (node.metadata_props.get(key) for key in (METHOD, SITE))
        if method is None or site is None:
            continue
        row = found.setdefault(site, {"site": site, "method": method, "nodes": 0})
        row["nodes"] += 1
    for site, row in found.items():
        kept = kept_output(site, outputs)
        row["tokens_out"] = None if kept is None else outputs[kept].shape[1]
        row["merges"] = received_at(site) in outputs
    return sorted(found.values(), key=lambda row: parse_site(row["site"]).depth)


def _anchors(model: Any, *, quantized: bool) -> dict[str, Any]:
    """Return what an unpruned graph offers to a method."""
    if quantized:
        return {"refusal": "the graph is quantized; prune the floating-point graph, then quantize"}
    is_decoder = any(value.name == LOGITS for value in model.graph.outputs)
    try:
        return _decoder_anchors(model) if is_decoder else _vision_anchors(model)
    except GraphRefusal as error:
        return {"refusal": str(error)}


def _vision_anchors(model: Any) -> dict[str, Any]:
    from lmmprune.passes.find.anchors import find_vision_anchors

    anchors = find_vision_anchors(model)
    # Tokens of several patches need them all behind the encoder.
    inside = [_range("vision_layer", 0, anchors.depth)] if anchors.members is None else []
    return {
        "tokens": anchors.tokens,
        "patches_per_token": 1 if anchors.members is None else anchors.members.shape[1],
        "patches": anchors.patches.name,
        "has_cls": anchors.has_cls,
        "layers": anchors.depth,
        "sites": [*inside, "vision_output", "projector_output"],
    }


def _decoder_anchors(model: Any) -> dict[str, Any]:
    from lmmprune.passes.find.anchors import find_decoder_anchors

    layers = find_decoder_anchors(model).layers
    heads, kv_heads, head_dim = layers[0].heads
    return {
        "layers": len(layers),
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "sites": [_range("llm_input", 0, len(layers)), _range("llm_layer", 0, len(layers))],
    }


def _range(kind: str, first: int, end: int) -> str:
    return f"{kind}_{first}..{end - 1}" if end - first > 1 else f"{kind}_{first}"


def _cache(model: Any) -> list[dict[str, Any]]:
    """Return the stretches of layers whose caches have the same length: behind a cut they are shorter."""
    keys = [value for value in model.graph.inputs if re.fullmatch(r"past_key_values\.\d+\.key", str(value.name))]
    rows = [(str(value.name).split(".")[1], _value(value)["shape"]) for value in keys]
    return [
        {"layers": [int(layer) for layer, _ in group], "shape": shape}
        for shape, group in itertools.groupby(rows, key=lambda row: row[1])
    ]


def _attention_layers(model: Any) -> list[dict[str, Any]]:
    """Return every Attention node with the shape of its queries, ``[B,H,T,D]``."""
    layers = [node for node in model.graph if node.op_type == "Attention"]
    return [{"node": node.name, "queries": _value(node.inputs[0])["shape"]} for node in layers]


def _bytes(model: Any) -> int:
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def _value(value: Any) -> dict[str, Any]:
    shape = None if value.shape is None else [d if isinstance(d, int) else str(d.value) for d in value.shape]
    return {"name": value.name, "dtype": str(value.dtype), "shape": shape}
