"""From graphs that answer one question to graphs that answer several at once."""

from __future__ import annotations

from lmmprune.compiler.bundle.interface import Batch
from lmmprune.compiler.export.decide import Decision
from lmmprune.compiler.export.reduce import Reduced
from lmmprune.compiler.export.step_clock import StepClock
from lmmprune.names import PADDING
from lmmprune.passes.batch.mask_padding import MaskPadding
from lmmprune.passes.batch.widen_batch import WidenBatch
from lmmprune.passes.graph.shapes import static_shape
from lmmprune.progress import step


def widen(decision: Decision, reduced: Reduced, clock: StepClock) -> None:
    """Give vision graph and decoder the rows that were asked for; the selection stays that of one question.

    All that looks at pictures is done before, on graphs of one row: ranges, counts and losses don't depend on a batch.

    Args:
        decision: What is going to be done.
        reduced: Pruned, perhaps quantized graphs; changed in place.
        clock: Told of the step.
    """
    if decision.request.batch == 1:
        return
    with step(clock.report, "batch"):
        MaskPadding(begin=_padding_place(reduced), removed=reduced.removed)(reduced.decoder)
        for model in (reduced.vision, reduced.decoder):
            WidenBatch(batch=decision.request.batch)(model)


def batch_of(reduced: Reduced) -> Batch | None:
    """Return how graphs as they are now take several questions; None if they take one."""
    inputs = {value.name: value for value in reduced.decoder.graph.inputs}
    if PADDING not in inputs:
        return None
    return Batch(rows=static_shape(inputs[PADDING])[0], padding=_padding_place(reduced))


def _padding_place(reduced: Reduced) -> int:
    """Return where rows are padded: at the beginning, but where cuts need the picture's place, behind that."""
    return reduced.text.prefix + reduced.image_tokens if any(reduced.removed) else 1
