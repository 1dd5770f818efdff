"""What a request means for one target and one model; all that can be refused without a graph is refused here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmmprune.compiler.bundle.replace import BUNDLE, check_directory
from lmmprune.compiler.bundle.tile_grids import Grid, most_images
from lmmprune.compiler.export.batch_choices import check_batch
from lmmprune.compiler.export.choices import (
    carried_of,
    check_cache,
    check_images,
    check_joint,
    counts_of,
    dtype_of,
    int4_of,
    int8_of,
    least_opset,
    positions_of,
    stages_of,
)
from lmmprune.compiler.export.frames import check_frames, of_views
from lmmprune.compiler.export.request import Request
from lmmprune.compiler.export.tile_choices import check_tiles, choose_grids
from lmmprune.compiler.export.values import Auto, Buckets, Schedule
from lmmprune.compiler.export.views import ViewPlan, check_room, check_views, largest, sources_of
from lmmprune.compiler.targets import targets
from lmmprune.compiler.targets.target import Target
from lmmprune.models.source import Source, resolve

if TYPE_CHECKING:
    from lmmprune.compiler.data.calibration import CalibrationSet
    from lmmprune.compiler.quantize.carry import CarryPlan
    from lmmprune.compiler.quantize.int4_plan import Int4Plan
    from lmmprune.compiler.quantize.int8_plan import Int8Plan
    from lmmprune.facts import Facts
    from lmmprune.passes.methods import Method
    from lmmprune.passes.reduce.stage import Stage


JUDGED = 8
"""Of the user's pictures, how many tell what is lost."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What is going to be done.

    Attributes:
        request: What the user asked for.
        source: The model.
        facts: Its numbers that schedules depend on.
        target: Where the bundle will run, with the opset that it gets.
        dtype: Floating-point type of the bundle.
        method: What chooses tokens.
        int8: How graphs are quantized to INT8; None: none is.
        int4: How the decoder's weights become four bits; None: they don't.
        carried: How the integers of a checkpoint that is quantized already are taken over; None: it isn't.
        data: Pictures with questions; None where nothing is measured.
        counts: Visual tokens that were asked for, ascending; none where the pictures decide.
        stages: Of the largest count; none where nothing is removed, or the pictures decide.
        positions: How tokens are numbered that enter the decoder, and those behind cuts inside it.
        views: All sizes of pictures, or grids of tiles, in the order in which they were asked for, where they are
            several; all else here is of the one with the most tokens.
        grids: Of tiles that a picture is cut into one of; none: it goes in as one image, or as ``source.tiles`` says.
    """

    request: Request
    source: Source
    facts: Facts
    target: Target
    dtype: str
    method: Method
    int8: Int8Plan | None
    int4: Int4Plan | None
    carried: CarryPlan | None
    data: CalibrationSet | None
    counts: tuple[int, ...]
    stages: tuple[Stage, ...]
    positions: str
    grids: tuple[Grid, ...] = ()
    views: tuple[ViewPlan, ...] = ()

    @property
    def alone(self) -> Decision:
        """The same with the largest size alone."""
        return dataclasses.replace(self, views=())

    @property
    def further(self) -> dict[str, ViewPlan]:
        """Component -> what is done for pictures of a size or grid, of all but the largest."""
        return {f"vision_{plan.name}": plan for plan in self.views if plan.source is not self.source}

    @property
    def auto(self) -> Auto | None:
        """How the pictures decide on one count; None where they don't."""
        return self.request.tokens if isinstance(self.request.tokens, Auto) else None

    @property
    def copies(self) -> int:
        """How often the vision graph runs for a prompt at most: once where it sees all pictures together."""
        return 1 if self.request.joint else self.request.images * most_images(self.grids)

    @property
    def buckets(self) -> bool:
        """Whether there are several counts behind one encoder."""
        return isinstance(self.request.tokens, Buckets)

    @property
    def cuts_decoder(self) -> bool:
        """Whether tokens are cut inside the decoder, or will be when the pictures have decided."""
        stages = self.stages if self.counts else self.method.stages_for(self.facts, self.facts.tokens)
        return any(stage.site.in_decoder for stage in stages)

    @property
    def judged_on(self) -> CalibrationSet | None:
        """The user's own pictures that tell what is lost; None: nothing is, or nobody gave any."""
        own = self.request.judge and self.request.calibration is not None
        if (
            self.data is None
            or not own
            or self.buckets
            or self.request.joint
            or self.request.frames is not None
            or not (self.stages or self.auto or self.quantized)
        ):
            return None
        few = [dataclasses.replace(sample, answer="") for sample in self.data.samples[:JUDGED]]
        return dataclasses.replace(self.data, samples=few)

    @property
    def quantized(self) -> bool:
        """Whether anything becomes integers."""
        return self.int8 is not None or self.int4 is not None or self.carried is not None

    @property
    def calibrates(self) -> bool:
        """Whether activations are looked at."""
        return self.data is not None and (self.int8 is not None or (self.int4 is not None and self.int4.calibrated))


def decide(request: Request) -> Decision:
    """Return what a request means.

    Raises:
        LmmpruneError: It can't be done.
    """
    from lmmprune.compiler.data.calibration import load_calibration
    from lmmprune.models.facts import facts_of
    from lmmprune.passes.int4.int4 import INT4_OPSET
    from lmmprune.passes.int8.int8 import SCHEMES
    from lmmprune.passes.lower.static_cache import SCATTER_OPSET
    from lmmprune.passes.methods import get_method
    from lmmprune.passes.reduce.schedule import average, round_half_up

    check_directory(request.output, BUNDLE, force=request.force)
    target = targets.resolve(request.target)
    dtype = dtype_of(target, request.dtype)
    method = get_method(request.method, dict(request.options), file=request.method_file)
    request = check_frames(request, method)
    check_joint(request)
    sources = sources_of(
        request,
        lambda image_size, tiles: resolve(
            request.model,
            weights=request.weights,
            layers=request.layers,
            image_size=image_size,
            tiles=tiles,
            adapter=request.adapter,
            frames=request.frames,
            together=(request.frames or request.images) if request.joint else 1,
        ),
    )
    source = largest(sources)
    request = of_views(request, source)
    facts, grids = facts_of(source), choose_grids(request.tiles, source)
    if isinstance(request.tokens, Buckets):
        method = method.at_output_only()
    int8, int4 = int8_of(request, target, dtype), int4_of(request, target)
    carried = carried_of(request, source, target, dtype)
    if int4 is not None or carried is not None:
        target = least_opset(target, INT4_OPSET)
    # Pictures are needed for ranges and for rounding, or for token counts.
    ranges = (int8 is not None and SCHEMES[int8.scheme].calibrated) or (int4 is not None and int4.calibrated)
    measures = ranges or isinstance(request.tokens, Auto | Buckets)
    samples = request.calibration_samples if measures else min(request.calibration_samples, JUDGED)
    given = measures or (request.calibration is not None and request.judge)
    data = load_calibration(source, request.calibration, samples) if given else None
    # What the pictures decide is known only when the encoder has seen them; everything else can be refused now.
    if isinstance(request.tokens, Schedule):
        stages = stages_of(request.tokens, method, facts)
        counts: tuple[int, ...] = (round_half_up(average([(one.site, one.keep) for one in stages], facts)),)
    else:
        counts = counts_of(request, method, facts)
        stages = method.plan(facts, max(counts)) if counts else ()
    views = _views(request, method, sources, source, stages)
    positions = positions_of(request.positions, method, rows=source.decoder.position_rows)
    entering = image_tokens_of(stages, facts) * (1 if request.joint else request.images * most_images(grids))
    check_images(request, source, method, facts, stages, entering, positions)
    planned = stages or (() if request.tokens is None else method.stages_for(facts, facts.tokens))
    check_batch(request, source, method, planned, positions, int8)
    check_tiles(request, source, method, facts, stages, grids, entering=entering, positions=positions)
    if request.static_cache is not None:
        check_cache(request.static_cache, target, entering, source.decoder.max_positions)
        target = least_opset(target, SCATTER_OPSET)
    return Decision(
        request=request,
        source=source,
        facts=facts,
        target=target,
        dtype=dtype,
        method=method,
        int8=int8,
        int4=int4,
        carried=carried,
        data=data,
        counts=counts,
        stages=tuple(stages),
        positions=positions,
        views=views,
        grids=grids,
    )


def _views(
    request: Request, method: Method, sources: Sequence[Source], main: Source, stages: Sequence[Stage]
) -> tuple[ViewPlan, ...]:
    """Return what each of several sizes or grids keeps; none where there is one."""
    from lmmprune.models.facts import facts_of

    if len(sources) == 1:
        return ()
    check_views(request, method, stages)
    plans = []
    for source in sources:
        facts = facts_of(source)
        own = stages if source is main else method.plan(facts, counts_of(request, method, facts)[0])
        plans.append(ViewPlan(source=source, facts=facts, stages=tuple(own)))
    check_room(plans, image_tokens_of(stages, facts_of(main)), image_tokens_of)
    return tuple(plans)


def image_tokens_of(stages: Iterable[Stage], facts: Facts) -> int:
    """Return the visual tokens that enter the decoder."""
    before = (stage.keep for stage in stages if not stage.site.in_decoder or stage.site.before_layers)
    return min(before, default=facts.tokens)
