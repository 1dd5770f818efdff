"""A checkpoint's own integers for the decoder: whether a target takes them, and writing them into the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from lmmprune.compiler.bundle.content import CarriedWeights
from lmmprune.compiler.targets.target import Target
from lmmprune.errors import GraphRefusal, ModelError, TargetError
from lmmprune.lazy import origin_of
from lmmprune.models.quantized.packed_weight import PackedWeight
from lmmprune.models.source import Source
from lmmprune.passes.int4.carry_weights import CarryWeights

_ANEW = "or give the floating-point checkpoint with --int4 or --int8"


@dataclass(frozen=True, kw_only=True)
class CarryPlan:
    """How weights that are integers already go into the graph.

    Attributes:
        weights: What the manifest says of them.
        group: Inputs that share a scale in the graph; None: one scale for an output.
    """

    weights: CarriedWeights
    group: int | None


def plan_carry(source: Source, target: Target, dtype: str) -> CarryPlan | None:
    """Return how a checkpoint's integers are carried over; None if it has none.

    Args:
        source: The model.
        target: Where the bundle will run.
        dtype: Floating-point type of the bundle.

    Raises:
        ModelError: Scales that aren't numbers.
        TargetError: The target, or the type, doesn't take them as they are.
    """
    said = source.integers
    if said is None:
        return None
    packed = list(source.packed.values())
    for weight in packed:
        _check_scales(weight, dtype)
    zeros = [weight for weight in packed if weight.zeros() is not None]
    nbits = target.nbits_level is not None
    if zeros and not nbits:
        raise TargetError(
            f"'{zeros[0].name}' (and {len(zeros) - 1} more) has zero points ({said}), target '{target.name}'"
            f" takes symmetric integers only: take an ONNX Runtime target, or a symmetric checkpoint, {_ANEW}"
        )
    whole = all(weight.group >= weight.inputs for weight in packed)
    if said.bits == 8 and not nbits:
        if not whole:
            raise TargetError(
                f"the checkpoint has 8 bits in groups of {said.group}, target '{target.name}' takes one scale for an"
                f" output: take an ONNX Runtime target, {_ANEW}"
            )
        group = None
    else:
        group = _group(packed, target)
    weights = CarriedWeights(
        method=said.method,
        bits=said.bits,
        group=None if whole else said.group,
        zero_points=bool(zeros),
        reordered=any(weight.order() is not None for weight in packed),
    )
    return CarryPlan(weights=weights, group=group)


def carry(decoder: ir.Model, packed: Mapping[str, PackedWeight], plan: CarryPlan) -> None:
    """Put the integers into the decoder.

    Args:
        decoder: Pruned float32 graph; changed in place.
        packed: The module's parameter -> its integers.
        plan: How.

    Raises:
        GraphRefusal: Some aren't weights of the decoder's products.
    """
    names = {}
    for name, value in decoder.graph.initializers.items():
        origin = origin_of(value)
        if origin is not None and origin.weight in packed:
            names[name] = origin.weight
    if elsewhere := sorted(set(packed) - set(names.values())):
        raise GraphRefusal(
            f"the checkpoint has '{elsewhere[0]}' (and {len(elsewhere) - 1} more) in integers, which isn't the"
            " decoder's: only weights of its products are carried over; have that module ignored where it is quantized"
        )
    CarryWeights(packed={name: packed[weight] for name, weight in names.items()}, group=plan.group)(decoder)


def _check_scales(weight: PackedWeight, dtype: str) -> None:
    scales = weight.scales().astype(np.float32)
    if not np.isfinite(scales).all():
        raise ModelError(f"'{weight.name}' has scales that aren't numbers: download the checkpoint again")
    kind = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}.get(dtype, np.float32)
    if odd := int(np.count_nonzero(scales.astype(kind).astype(np.float32) != scales)):
        raise TargetError(
            f"'{weight.name}' has {odd} scales of {weight.dtype.name} that {dtype} can't hold as they are: give --dtype"
            f" {'float16' if weight.dtype == ir.DataType.FLOAT16 else 'float32'}, or another target"
        )


def _group(packed: list[PackedWeight], target: Target) -> int:
    """Return how many inputs share a scale in the graph: as many as the target takes, and fit every weight."""
    for group in sorted(target.int4_groups, reverse=True):
        # All inputs of an output may be taken as groups with the same scale; a shorter one at the end where that goes.
        if all(
            (weight.group % group == 0 or weight.group >= weight.inputs)
            and not (target.int4_whole and weight.inputs % group)
            for weight in packed
        ):
            return group
    sizes = ", ".join(map(str, sorted({weight.group for weight in packed})))
    takes = ", ".join(map(str, sorted(target.int4_groups)))
    raise TargetError(
        f"the checkpoint's groups of {sizes} inputs aren't whole numbers of those that target '{target.name}' takes"
        f" ({takes}{', which divide the inputs' if target.int4_whole else ''}): take another target, {_ANEW}"
    )
