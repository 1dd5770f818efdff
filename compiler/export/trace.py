"""The canonical graphs of a model, traced for one bundle or shared by many."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lmmprune.compiler.assets.write_assets import image_token_id
from lmmprune.compiler.bundle.interface import Prompt
from lmmprune.compiler.export.decide import Decision
from lmmprune.compiler.export.step_clock import StepClock
from lmmprune.models.source import Source
from lmmprune.progress import step

if TYPE_CHECKING:
    import onnx_ir as ir

    from lmmprune.models.canonical import Canonical


def trace(
    decision: Decision, prompt: Prompt, traced: Callable[[Source], Canonical] | None, clock: StepClock
) -> Canonical:
    """Return the graphs to change; ``traced`` gives them where many bundles share a trace."""
    from lmmprune.models.canonical import canonical_graphs

    with step(clock.report, "trace"):
        if traced is not None:
            return traced(decision.source)
        return canonical_graphs(
            decision.source,
            image_token_id=prompt.image_token_id,
            next_layer=decision.method.next_layer and bool(decision.stages),
            cache=decision.request.cache,
        )


def trace_views(decision: Decision, prompt: Prompt, clock: StepClock) -> dict[str, ir.Model]:
    """Return component -> the vision graph to change of each size or grid but the largest; none where there is one."""
    from lmmprune.models.canonical import canonical_vision

    graphs = {}
    for number, (component, plan) in enumerate(decision.further.items(), 1):
        graphs[component] = canonical_vision(
            plan.source,
            image_token_id=prompt.image_token_id,
            next_layer=decision.method.next_layer and bool(decision.stages),
            cache=decision.request.cache,
        )
        clock.report("trace sizes", number, len(decision.further))
    return graphs


def shared_trace() -> Callable[[Source], Canonical]:
    """Return a function that traces a model once, one layer behind its features if there is one, and gives copies.

    For many bundles of one model: a trace takes longer than all passes together.
    """
    from lmmprune.models.canonical import canonical_graphs
    from lmmprune.models.configure import pictures_together

    done: dict[tuple[object, ...], Canonical] = {}

    def traced(source: Source) -> Canonical:
        together = pictures_together(source.config)
        sees = (source.vision.image_size, source.tiles, together, source.frames)
        key = (source.name, source.dummy, source.decoder.layers, *sees)
        if key not in done:
            done[key] = canonical_graphs(source, image_token_id=image_token_id(source), next_layer=True)
        return done[key].clone()

    return traced
