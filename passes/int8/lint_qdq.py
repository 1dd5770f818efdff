"""Check where a graph quantizes, and how, against the rules of the runtime that shall take it; changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from lmmprune.names import NBITS
from lmmprune.passes.int8 import qdq_checks as checks
from lmmprune.passes.int8.int8 import INT4, LINTED, Scheme

_QUANTIZES = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", NBITS}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One place that breaks a rule: its name in ``RULES``, the node, and what is there."""

    rule: str
    node: str
    found: str


@dataclass(frozen=True, kw_only=True)
class LintRule:
    """What must hold, why (the runtime's own word for it), and who asks for it.

    Attributes:
        says: The rule in one line.
        why: What happens otherwise.
        schemes: Names in ``LINTED`` that it applies to.
        check: Yields a node and what is wrong with it.
    """

    says: str
    why: str
    schemes: frozenset[str]
    check: Callable[[ir.Model, Scheme], checks.Findings]


def lint_qdq(model: ir.Model, scheme: str) -> list[Finding]:
    """Return every place where a graph breaks a rule of a scheme; a graph without Q/DQ breaks none.

    Args:
        model: Any ONNX graph, also one that another tool quantized.
        scheme: Name in ``LINTED``.
    """
    return [
        Finding(rule=name, node=str(node.name or node.outputs[0].name), found=found)
        for name, rule in RULES.items()
        if scheme in rule.schemes
        for node, found in rule.check(model, LINTED[scheme])
    ]


def is_quantized(model: ir.Model) -> bool:
    """Return whether a graph quantizes anything."""
    return any(node.op_type in _QUANTIZES for node in model.graph)


def scheme_of_weights(model: ir.Model) -> str:
    """Return the scheme of a graph whose weights alone are quantized."""
    four = any(value.dtype == ir.DataType.INT4 for value in model.graph.initializers.values())
    four = four or any(node.op_type == NBITS and node.attributes.get_int("bits", 4) == 4 for node in model.graph)
    return INT4 if four else "s8-weights"


_TENSORRT, _X86, _WEIGHTS = frozenset({"s8s8"}), frozenset({"u8s8"}), frozenset({"s8-weights"})
_STATIC = _TENSORRT | _X86
_EIGHT = _STATIC | _WEIGHTS | frozenset({"u8s8-dynamic"})
_FOUR = frozenset({INT4})
_ALL = _EIGHT | _FOUR

RULES: Mapping[str, LintRule] = {
    "scale": LintRule(
        says="scales are positive constants",
        why="a scale that is 0, NaN or computed can't be folded into a kernel",
        schemes=_ALL,
        check=checks.scale_is_sound,
    ),
    "symmetric": LintRule(
        says="zero points are constants and 0",
        why="TensorRT's parser refuses others (onnx-tensorrt, operators.md)",
        schemes=_TENSORRT | _WEIGHTS | _FOUR,
        check=checks.zero_point_is_zero,
    ),
    "activation-type": LintRule(
        says="activations have the type that the kernels want",
        why="S8 activations run at half the speed of U8 on x86; TensorRT takes S8 only",
        schemes=_STATIC,
        check=checks.activation_type,
    ),
    "per-tensor": LintRule(
        says="activations have one scale",
        why="only constant weights may have a scale per channel (TensorRT, working with quantized types)",
        schemes=_STATIC,
        check=checks.activation_per_tensor,
    ),
    "per-channel": LintRule(
        says="weights have one scale per output channel",
        why="one scale for all channels loses accuracy, and scales along the inner axis can't leave the product",
        schemes=_EIGHT,
        check=checks.weight_per_channel,
    ),
    "per-group": LintRule(
        says="weights of four bits have one scale per group of inputs",
        why="kernels read groups along the inputs; TensorRT takes four bits in no other form",
        schemes=_FOUR,
        check=checks.weight_per_group,
    ),
    "stored": LintRule(
        says="weights are stored as integers",
        why="the file keeps four times the bytes otherwise, and some builders too",
        schemes=_ALL,
        check=checks.weight_is_stored,
    ),
    "weight-type": LintRule(
        says="weights are signed",
        why="TensorRT has no unsigned weights, and x86 kernels want U8 times S8",
        schemes=_ALL,
        check=checks.weight_type,
    ),
    "both-inputs": LintRule(
        says="both inputs of a product are quantized, or none",
        why="the product runs in floating point and the conversion is paid for nothing",
        schemes=_STATIC,
        check=checks.both_sides,
    ),
    "weights-only": LintRule(
        says="no activation is quantized",
        why="asked for were integer weights only",
        schemes=_WEIGHTS | _FOUR,
        check=checks.weights_only,
    ),
    "no-output-pair": LintRule(
        says="no pair between a product and its bias or activation",
        why="it breaks TensorRT's fusion of the epilogue",
        schemes=_TENSORRT,
        check=checks.no_pair_on_output,
    ),
    "shared-scale": LintRule(
        says="one value is quantized with one scale",
        why="q, k and v can't be computed by one kernel otherwise, and the value is quantized several times",
        schemes=_STATIC,
        check=checks.shared_scale,
    ),
    "placement": LintRule(
        says="pairs stand next to their product, behind gathers, reshapes and transposes",
        why="builds for Orin fail when they are moved across (NVIDIA/TensorRT issue 4832)",
        schemes=_TENSORRT,
        check=checks.next_to_product,
    ),
    "stream": LintRule(
        says="the residual stream stays floating point",
        why="its outliers need the range that eight bits don't have",
        schemes=_ALL,
        check=checks.stream_stays_float,
    ),
    "score": LintRule(
        says="scores stay floating point",
        why="a quantized score flips near-tie picks",
        schemes=_ALL,
        check=checks.scores_stay_float,
    ),
}
