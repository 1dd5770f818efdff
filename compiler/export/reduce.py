"""Remove visual tokens in the traced graphs, before the decoder and inside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from lmmprune.compiler.assets.text_layout import TextLayout
from lmmprune.compiler.bundle.interface import Prompt
from lmmprune.compiler.export.count_tokens import TokenPlan
from lmmprune.compiler.export.decide import Decision, image_tokens_of
from lmmprune.compiler.export.step_clock import StepClock
from lmmprune.compiler.flops.formula import TEXT_TOKENS
from lmmprune.models.canonical import Canonical
from lmmprune.models.quantized.packed_weight import PackedWeight
from lmmprune.names import IMAGE_FEATURES
from lmmprune.passes.graph.count_flops import count_flops
from lmmprune.passes.graph.shapes import bind_dims, static_shape
from lmmprune.passes.graph.specialize import specialize
from lmmprune.passes.lower.freeze_shapes import FreezeShapes
from lmmprune.passes.reduce.reduce_decoder import ReduceDecoder
from lmmprune.passes.reduce.reduce_vision import ReduceVision
from lmmprune.passes.reduce.select_before_layers import select_before_layers
from lmmprune.passes.reduce.split_vision import split_vision
from lmmprune.passes.reduce.stage import Stage
from lmmprune.progress import step


@dataclass(frozen=True, kw_only=True)
class Reduced:
    """The graphs of the bundle, which the steps behind change in place, and what is known of them.

    Attributes:
        vision: The tower with its projector, or the encoder of several counts.
        decoder: The language model.
        buckets: Token count -> the graph that makes so many, behind the encoder; none with one count.
        selection: Chooses among the vision graph's features, once per prompt; None: all of them enter the decoder.
        remarks: What the user should know of how the weights were understood.
        stages: Where tokens go, of the largest count.
        prompt: How a question becomes tokens.
        text: What is constant about prompts.
        image_tokens: Visual tokens of a picture that enter the decoder.
        removed: Visual tokens that are gone before each decoder layer.
        packed: The module's parameter -> its integers, of weights that the checkpoint holds so.
        flops: Of ``vision`` and ``prefill``, ``before`` and ``after``; of as many pictures as a prompt may have.
    """

    vision: ir.Model
    decoder: ir.Model
    buckets: Mapping[int, ir.Model]
    selection: ir.Model | None
    remarks: tuple[str, ...]
    stages: tuple[Stage, ...]
    prompt: Prompt
    text: TextLayout
    image_tokens: int
    removed: tuple[int, ...]
    flops: Mapping[str, Mapping[str, float]]
    packed: Mapping[str, PackedWeight]

    @property
    def models(self) -> tuple[ir.Model, ...]:
        """All graphs."""
        between = () if self.selection is None else (self.selection,)
        return (self.vision, self.decoder, *self.buckets.values(), *between)


def reduce(
    decision: Decision, plan: TokenPlan, graphs: Canonical, prompt: Prompt, text: TextLayout, clock: StepClock
) -> Reduced:
    """Cut tokens where the plan says; count the floating-point operations before and after.

    Args:
        decision: What is going to be done.
        plan: How many tokens stay where.
        graphs: Unpruned, float32; changed in place.
        prompt: How a question becomes tokens.
        text: What is constant about prompts.
        clock: Told of the step.
    """
    stages, facts = plan.stages, decision.facts
    image_tokens, images = image_tokens_of(stages, facts), decision.copies
    entering = images * image_tokens
    before = {
        "vision": images * count_flops(graphs.vision),
        "prefill": count_flops(graphs.decoder, {"seq": images * facts.tokens + TEXT_TOKENS, "past": 0}),
    }
    with step(clock.report, "prune"):
        vision, buckets = graphs.vision, dict[int, ir.Model]()
        selection = _selection(decision, plan, graphs.decoder, text)
        if decision.buckets:
            vision, buckets = split_vision(graphs.vision, decision.method, facts.grid, plan.counts)
        else:
            bind_dims(graphs.decoder, {"image_tokens": entering})
            ReduceVision(
                method=decision.method.name,
                stages=stages,
                grid=facts.grid,
                tiles=facts.tiles,
                separators=facts.separators,
            )(vision)
        FreezeShapes()(vision)
        cut = ReduceDecoder(
            method=decision.method.name,
            stages=stages,
            image_tokens=entering,
            prefix=text.prefix,
            positions=decision.positions,
            special_ids=text.special_ids,
        )
        cut(graphs.decoder)
        prefill = specialize(graphs.decoder, seq=entering + TEXT_TOKENS, image_tokens=entering)
        largest = count_flops(buckets[max(buckets)]) if buckets else 0
        chosen = 0
        if selection is not None:
            arriving = static_shape(next(v for v in selection.graph.inputs if v.name == IMAGE_FEATURES))[1]
            chosen = images * count_flops(specialize(selection, seq=arriving + TEXT_TOKENS))
        after = {"vision": images * count_flops(vision) + largest, "prefill": count_flops(prefill) + chosen}
    return Reduced(
        vision=vision,
        decoder=graphs.decoder,
        buckets=buckets,
        selection=selection,
        remarks=graphs.remarks,
        stages=stages,
        prompt=prompt,
        text=text,
        image_tokens=image_tokens,
        removed=tuple(cut.removed_before(decision.source.decoder.layers)),
        flops={part: {"before": before[part], "after": after[part]} for part in before},
        packed=graphs.packed,
    )


def _selection(decision: Decision, plan: TokenPlan, decoder: ir.Model, text: TextLayout) -> ir.Model | None:
    """Return the graph of the stage in front of the decoder's layers, if there is one that removes something."""
    stage = next((stage for stage in plan.stages if stage.site.before_layers), None)
    if stage is None:
        return None
    before = [stage for stage in plan.stages if not stage.site.in_decoder]
    return select_before_layers(
        decoder,
        stage,
        method=decision.method.name,
        image_tokens=image_tokens_of(before, decision.facts),
        prefix=text.prefix,
    )
