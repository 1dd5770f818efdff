"""The cost of the prefill counted from graphs: of a traced decoder layer by layer, and of the files of a bundle."""

from __future__ import annotations

import re
from dataclasses import dataclass

import onnx_ir as ir

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.onnx_files.load_onnx import load_onnx
from lmmprune.models.source import Source
from lmmprune.passes.graph.count_flops import count_flops
from lmmprune.passes.graph.specialize import specialize

_LAYER = re.compile(r"\blayers\.(\d+)\.")
# In place of a layer's number: embedding, last norm, head.
_NOWHERE = -1


@dataclass(frozen=True, kw_only=True)
class Counted:
    """FLOPs of a decoder graph.

    Attributes:
        per_layer: FLOPs of MatMul and Attention in each layer, first to last.
        rest: What lies in no layer: ``lm_head`` at one position.
    """

    per_layer: tuple[int, ...]
    rest: int


def trace_decoder_layers(source: Source) -> ir.Model:
    """Trace the decoder of a model into canonical form; no weight is read.

    Args:
        source: The model, with as many decoder layers as are to be counted.
    """
    from lmmprune.models import trace
    from lmmprune.models.canonicalize import canonicalize

    model = trace.fake_model(source)
    # Any id will do for the placeholder: it is a constant in front of the layers.
    decoder = trace.trace_decoder(model, source, image_token_id=0)
    trace.bind(decoder, source.readers(model))
    return canonicalize(decoder)


def count_layers(decoder: ir.Model, tokens: int) -> Counted:
    """Count the FLOPs of a canonical decoder's prefill, layer by layer.

    A node with a weight belongs to the layer that the weight's name states; one without, such as ``Attention``, to the
    layer of the weight before it.

    Args:
        decoder: Canonical decoder graph, sorted, not quantized.
        tokens: Length of the sequence, visual and text tokens together.
    """
    groups: dict[int, list[ir.Node]] = {_NOWHERE: []}
    layer = _NOWHERE
    for node in decoder.graph:
        for value in node.inputs:
            if value is not None and value.is_initializer() and ".weight" in str(value.name):
                found = _LAYER.search(str(value.name))
                layer = int(found[1]) if found else _NOWHERE
        groups.setdefault(layer, []).append(node)
    costs = {layer: _count(nodes, tokens) for layer, nodes in groups.items()}
    rest = costs.pop(_NOWHERE)
    return Counted(per_layer=tuple(costs[layer] for layer in sorted(costs)), rest=rest)


def count_bundle(bundle: Bundle, text_tokens: int) -> dict[str, int]:
    """Count the FLOPs of a bundle's graphs on disk: ``vision``, and ``prefill`` with selection and ``lm_head``.

    A prompt has as many pictures as the bundle takes.

    Args:
        bundle: The bundle; its weights are not read.
        text_tokens: Text tokens beside the visual ones.

    Raises:
        GraphRefusal: A shape is missing in a file.
    """
    runs, tokens = bundle.manifest.vision_runs, bundle.manifest.feature_rows + text_tokens
    decoder = load_onnx(bundle.decoder, weights=False, expected=bundle.manifest.decoder)
    selection = bundle.manifest.selection
    chosen = 0
    if selection is not None:
        every = bundle.manifest.vision_tokens + text_tokens
        graph = load_onnx(bundle.file(selection.file), weights=False, expected=selection)
        chosen = runs * count_flops(specialize(graph, seq=every))
    return {
        "vision": runs * count_flops(load_onnx(bundle.vision, weights=False, expected=bundle.manifest.vision)),
        # Behind a cut inside the decoder, lengths are index arithmetic until the sequence's own is known.
        "prefill": count_flops(specialize(decoder, seq=tokens)) + chosen,
    }


def _count(nodes: list[ir.Node], tokens: int) -> int:
    view = ir.GraphView([], [], nodes=nodes)
    part = ir.Model(view, ir_version=11)  # type: ignore[arg-type]  # onnx-ir documents this use of a view
    return count_flops(part, {"seq": tokens, "past": 0})
