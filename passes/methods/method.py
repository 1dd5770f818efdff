"""What a pruning method is: its paper's hyper-parameters, and the stages that it puts into a model."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from lmmprune.errors import InputError
from lmmprune.facts import Facts
from lmmprune.passes.find.sites import VISION_OUTPUT, Kind, Site
from lmmprune.passes.graph.refusals import Refused
from lmmprune.passes.methods.options import field_type, kind_name, parse_options
from lmmprune.passes.reduce.rules import Correlate, Reduce, ReductionRule
from lmmprune.passes.reduce.schedule import Counts, check_schedule
from lmmprune.passes.reduce.site_context import SiteContext
from lmmprune.passes.reduce.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Method:
    """A training-free reduction of visual tokens; the fields of a subclass are its hyper-parameters.

    The simplest method states its name and writes one score::

        @dataclass(frozen=True, kw_only=True)
        class Longest(Method):
            \"\"\"Keep the patches whose features are longest.\"\"\"

            name = "longest"
            reference = "an example"
            exactness = "exact"

            def filter(self, at):
                return at.b.op("ReduceL2", at.visual, [2], keepdims=0)

    Others say where they cut with ``stages``, and merge with ``correlate`` or a rule of their own.

    Attributes:
        name: Name on the command line.
        reference: The paper.
        exactness: What is exact and what is our reading of the paper.
        positions: How tokens are numbered behind its cuts unless asked otherwise, ``original`` or ``contiguous``.
        published_positions: How its released code numbers them; None: there is none, or no decoder.
        site: Where a method of one site cuts.
        sites: Where it cuts, in words.
        schedule: How a wanted average becomes counts, in words.
        redundancy: Whether the largest scores go (rather than stay).
        epsilon: With ``correlate``: quantile of the affinities that a dropped token gives itself to.
        needs_cls: Whether the encoder must have a CLS token.
        next_layer: Whether it reads the encoder layer behind the features.
        scores_ahead: Whether its cuts between decoder layers are scored by the layer behind the cut (see
            ``own_layer.by_next_layer``) and not by the one before.
        tunable: (hyper-parameter, value as text) that ``lmmprune tune`` tries besides the defaults, one by one.
        over_time: Whether it compares the frames of a video, all of which it sees at once.
        movable: Kinds of sites that a schedule of the user's may name (``plan_schedule``); none: it takes no schedule.
    """

    name: ClassVar[str]
    reference: ClassVar[str]
    exactness: ClassVar[str]
    positions: ClassVar[str] = "original"
    published_positions: ClassVar[str | None] = None
    site: ClassVar[Site] = VISION_OUTPUT
    sites: ClassVar[str] = "vision_output"
    schedule: ClassVar[str] = "K at its one site"
    redundancy: ClassVar[bool] = False
    correlate: ClassVar[Correlate | None] = None
    epsilon: ClassVar[float] = 1.0
    needs_cls: ClassVar[bool] = False
    next_layer: ClassVar[bool] = False
    scores_ahead: ClassVar[bool] = False
    tunable: ClassVar[tuple[tuple[str, str], ...]] = ()
    over_time: ClassVar[bool] = False
    movable: ClassVar[tuple[Kind, ...]] = ()

    def filter(self, at: SiteContext) -> ir.Value:
        """Return the score of each visual token, ``[B,n]`` float32."""
        raise NotImplementedError(f"method '{self.name}' writes no score")

    def count(self, at: SiteContext) -> ir.Value:
        """Return how many patches of each picture the method itself would keep, ``[B]`` int64, at the vision output."""
        raise NotImplementedError(f"method '{self.name}' has no count of its own")

    @classmethod
    def numbering(cls) -> str:
        """Say how tokens are numbered, and how the released code numbers them where that is another way."""
        other = cls.published_positions not in (None, cls.positions)
        return f"{cls.positions} (as published: {cls.published_positions})" if other else cls.positions

    @property
    def counts_itself(self) -> bool:
        """Whether it has a count of its own for a picture."""
        return type(self).count is not Method.count

    def stages_for(self, model: Facts, count: int) -> tuple[Stage, ...]:
        """Return the stages when ``count`` patches stay at the vision output, as the method's own count says."""
        return self.plan(model, count)

    def at_output_only(self) -> Method:
        """Return the method without its stages inside the decoder: what one decoder for several counts takes."""
        return self

    def rule_at_output(self) -> ReductionRule:
        """Return what happens at the vision output."""
        return self.rule()

    def rule(self) -> ReductionRule:
        """Return what happens at its site."""
        return Reduce(
            filter=self.filter, redundancy=self.redundancy, correlate=type(self).correlate, epsilon=self.epsilon
        )

    def counts(self, model: Facts, target: int) -> Counts:
        """Return (site, tokens that leave it) in order of depth.

        Args:
            model: The model.
            target: Visual tokens that a decoder layer shall see on average, 1 <= target < N.
        """
        return [(self.site, target)]

    def plan(self, model: Facts, target: int) -> tuple[Stage, ...]:
        """Return the stages that remove something on a model, in order of depth; none if every token stays.

        Args:
            model: The model.
            target: Visual tokens that a decoder layer shall see on average, 1 <= target <= N.

        Raises:
            InputError: The model lacks what the method needs, or no schedule reaches the target.
        """
        return self._settle(self.stages(model, target), model)

    def plan_schedule(self, model: Facts, counts: Counts) -> tuple[Stage, ...]:
        """Return the stages of a given schedule, in order of depth, without those that remove nothing.

        Args:
            model: The model.
            counts: (site, visual tokens that leave it), in any order.

        Raises:
            InputError: The method takes no schedule or no such site, or the counts don't fall within 1..N.
        """
        self.check(model)
        check_schedule(self.name, self.movable, model, counts)
        return self._settle(tuple(self.stage(site, keep) for site, keep in counts), model)

    def _settle(self, stages: Sequence[Stage], model: Facts) -> tuple[Stage, ...]:
        """Return the stages that remove something, in order of depth; refuse those that the model can't have."""
        found, tokens = [], model.tokens
        for stage in sorted(stages, key=lambda stage: stage.site.depth):
            if stage.keep < tokens or stage.prune_text:
                if stage.site.kind == "vision_layer" and model.merge > 1:
                    raise Refused(
                        f"method '{self.name}' cuts inside the encoder, and this model makes each token of"
                        f" {model.merge} x {model.merge} patches behind it, which must all be there:"
                        " use a method that cuts at the vision output, behind the projector, or in the decoder"
                    )
                found.append(stage)
            tokens = stage.keep
        _check_tiles(self.name, found, model)
        return tuple(found)

    def stages(self, model: Facts, target: int) -> tuple[Stage, ...]:
        """Return its stages on a model, in any order; none if every token stays.

        Args:
            model: The model.
            target: Visual tokens that a decoder layer shall see on average, 1 <= target <= N.

        Raises:
            InputError: The model lacks what the method needs, or no schedule reaches the target.
        """
        if target == model.tokens:
            return ()
        self.check(model)
        return tuple(self.stage(site, keep) for site, keep in self.counts(model, target))

    def stage(self, site: Site, keep: int) -> Stage:
        """Return what it does at one of its sites, where ``keep`` tokens leave it."""
        return Stage(site=site, keep=keep, rule=self.rule())

    def check(self, model: Facts) -> None:
        """Refuse hyper-parameters that make no sense on a model.

        Raises:
            InputError: They don't.
        """
        if self.needs_cls and not model.has_cls:
            raise Refused(
                f"method '{self.name}' needs a CLS token and has no rule for an encoder without one:"
                " use freepruner, visionzip, divprune or aim"
            )
        if self.next_layer and not model.has_next_layer:
            raise Refused(
                f"method '{self.name}' reads the encoder layer behind the features, and this model's features come"
                " from the last one: use cls, freepruner, visionzip or divprune"
            )

    @property
    def parameters(self) -> dict[str, Any]:
        """The hyper-parameters as plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def with_options(cls, options: Mapping[str, str]) -> Method:
        """Make the method with some hyper-parameters changed, given as text.

        Raises:
            InputError: An unknown name, or a value of another type.
        """
        return cls(**parse_options(cls, options))


def _check_tiles(method: str, stages: Sequence[Stage], model: Facts) -> None:
    """Refuse what can't be done with a picture of several tiles.

    Raises:
        Refused: A site inside the encoder: each tile would lose the same number of tokens, and the raster with them.
        InputError: Fewer tokens are to stay than those that are no patches.
    """
    for stage in stages:
        if stage.site.kind == "vision_layer" and model.tiles > 1:
            raise Refused(
                f"method '{method}' works inside the encoder, which sees this model's pictures as {model.tiles} tiles"
                " one by one: use a method of the vision output, the projector or the decoder"
            )
        if stage.keep <= model.separators and not stage.site.in_decoder:
            raise InputError(
                f"method '{method}' would leave {stage.keep} tokens at {stage.site}, but {model.separators} of them are"
                " newlines, which always stay: keep more"
            )


def fraction(name: str, value: float, *, zero: bool = False) -> None:
    """Check a hyper-parameter that is a share.

    Raises:
        InputError: It isn't in ``(0, 1]``, or ``[0, 1]`` with ``zero``.
    """
    if not (0 <= value <= 1 if zero else 0 < value <= 1):
        raise InputError(f"{name}={value:g}: expected {'0 <=' if zero else '0 <'} value <= 1")


def one_of(method: type[Method], name: str, value: Any) -> None:
    """Check a hyper-parameter that is one of some words.

    Raises:
        InputError: It is another one.
    """
    field = next(field for field in dataclasses.fields(method) if field.name == name)
    kind = field_type(method, field)
    if value not in typing.get_args(kind):
        raise InputError(f"{name}={value}: expected {kind_name(kind)}")


def in_paper(name: str, layer: int, depth: int, *, least: int = 0) -> None:
    """Check a layer number that counts on the paper's model.

    Raises:
        InputError: That model has no such layer.
    """
    if not least <= layer < depth:
        raise InputError(f"{name}={layer}: expected {least}..{depth - 1}, on the paper's model of {depth} layers")


def keep_count(tokens: int, *, ratio: float | None = None, keep: int | None = None) -> int:
    """Return how many of N tokens stay: ``N - round(ratio * N)``, or ``keep`` itself.

    Args:
        tokens: N.
        ratio: Fraction removed, in ``[0, 1)``.
        keep: Count that stays.

    Raises:
        InputError: Ratio outside ``[0, 1)``, keep outside ``1..N``, both given, or nothing left.
    """
    if ratio is not None and keep is not None:
        raise InputError("--ratio and --keep exclude each other: give one")
    if keep is not None:
        if not 1 <= keep <= tokens:
            raise InputError(f"--keep {keep}: the model has {tokens} visual tokens; give 1..{tokens}")
        return keep
    ratio = 0.0 if ratio is None else ratio
    if not 0 <= ratio < 1:
        raise InputError(f"--ratio {ratio:g}: it is the fraction of visual tokens removed; give 0 <= ratio < 1")
    kept = tokens - round(ratio * tokens)
    if kept < 1:
        raise InputError(f"--ratio {ratio:g} leaves none of {tokens} visual tokens: give a smaller ratio, or --keep 1")
    return kept
