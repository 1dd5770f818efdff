"""Turn canonical graphs into what one target takes: its operators, its opset, its form of the cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from lmmprune.compiler.lower import require_supported
from lmmprune.compiler.targets.target import Target
from lmmprune.errors import below
from lmmprune.passes.lower.convert_opset import ConvertOpset
from lmmprune.passes.lower.equal_head_widths import EqualHeadWidths
from lmmprune.passes.lower.lower_attention import LowerAttention
from lmmprune.passes.lower.lower_gelu import LowerGelu
from lmmprune.passes.lower.lower_int4 import LowerInt4
from lmmprune.passes.lower.lower_rms_norm import LowerRmsNorm
from lmmprune.passes.lower.lower_rotary import LowerRotary

# High-level operator -> the pass that writes it as primitives, in the order of application.
LOWERINGS: Mapping[str, Callable[[], ir.passes.InPlacePass]] = {
    "Attention": LowerAttention,
    "RotaryEmbedding": LowerRotary,
    "RMSNormalization": LowerRmsNorm,
    "Gelu": LowerGelu,
}


@below("lowering a graph to its target", "try another --target; 'lmmprune targets' lists them")
def lower(model: ir.Model, target: Target) -> None:
    """Lower a graph in place, and refuse it if the target's parser would not take the result.

    The last step before the graph is written. It comes behind Q/DQ, which looks for the weights of the canonical form,
    and behind ``CastFloat``: each lowering sees the type of its node and puts the casts around softmax and norm
    statistics itself, where a cast behind it would have to recognise the patterns again.

    Raises:
        GraphRefusal: An operator is of a form that no primitives stand for, or the opset can't say something.
        TargetError: The target's parser doesn't take the lowered graph.
    """
    if target.equal_head_widths:
        EqualHeadWidths()(model)
    for op_type, make in LOWERINGS.items():
        if not target.takes(op_type):
            make()(model)
    if target.nbits_level is not None:
        LowerInt4(level=target.nbits_level)(model)
    ConvertOpset(version=target.opset)(model)
    require_supported(model, target)
