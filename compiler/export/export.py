"""The main job: from a model to a bundle with pruned, optionally quantized graphs for one target."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lmmprune.compiler.assets.text_layout import text_layout
from lmmprune.compiler.assets.write_assets import write_assets
from lmmprune.compiler.bundle.bundle import TOKENIZER
from lmmprune.compiler.bundle.write_bundle import write_bundle
from lmmprune.compiler.export.count_tokens import count_tokens
from lmmprune.compiler.export.decide import decide
from lmmprune.compiler.export.describe import describe, report
from lmmprune.compiler.export.finish_graphs import cast_and_lower, quantize, write_graphs
from lmmprune.compiler.export.measure_loss import ask_unpruned, measure_loss
from lmmprune.compiler.export.preflight import preflight
from lmmprune.compiler.export.reduce import reduce
from lmmprune.compiler.export.request import Report, Request
from lmmprune.compiler.export.step_clock import StepClock
from lmmprune.compiler.export.trace import trace, trace_views
from lmmprune.compiler.export.widen import widen
from lmmprune.models.source import Source
from lmmprune.progress import Progress, silent

if TYPE_CHECKING:
    from lmmprune.models.canonical import Canonical


def export(
    request: Request,
    progress: Progress = silent,
    *,
    traced: Callable[[Source], Canonical] | None = None,
    announce: Callable[[str], None] = lambda line: None,
) -> Report:
    """Export a model into a bundle.

    Args:
        request: What to do.
        progress: Called with the step's name, what is done of it and how much there is.
        traced: Gives the model's canonical graphs, one layer behind the features, where many bundles of one model are
            made (see ``trace.shared_trace``); None traces.
        announce: Told in one line what a large export will take, before it starts.

    Raises:
        LmmpruneError: Anything that the user can mend; nothing is left behind then.
    """
    clock = StepClock(progress)
    decision = decide(request)
    preflight(decision, announce)
    with write_bundle(request.output, resume=request.resume, force=request.force) as writer:
        assets = write_assets(
            decision.source, writer.path, request.template, images=request.images, grids=decision.grids
        )
        text = text_layout(assets.prompt, writer.path / TOKENIZER, in_decoder=decision.cuts_decoder)
        graphs = trace(decision, assets.prompt, traced, clock)
        beside = trace_views(decision, assets.prompt, clock)
        unpruned = ask_unpruned(decision, graphs, assets.prompt, text, writer.path, clock)
        plan = count_tokens(decision, graphs, writer.path, clock)
        reduced = reduce(decision, plan, graphs, assets.prompt, text, clock, beside)
        calibration = quantize(decision, reduced, writer.path, clock)
        loss = measure_loss(unpruned, decision, reduced, writer.path, clock)
        widen(decision, reduced, clock)
        cast_and_lower(decision, reduced, clock)
        weights = write_graphs(decision, reduced, writer.path, calibration, clock)
        manifest = writer.finish(describe(decision, plan, reduced, assets, calibration, loss), weights, clock.report)
    return report(decision, plan, reduced, assets, manifest, clock)
