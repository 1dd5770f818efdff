"""What each option means for one target and one model: type, integers, token counts, positions, the cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmmprune.compiler.bundle.manifest_rules import MOST_IMAGES
from lmmprune.compiler.export.request import Request
from lmmprune.compiler.export.values import Auto, Buckets, Keep, Ratio, Schedule
from lmmprune.compiler.targets import targets
from lmmprune.compiler.targets.target import Target
from lmmprune.errors import InputError

if TYPE_CHECKING:
    from lmmprune.compiler.quantize.carry import CarryPlan
    from lmmprune.compiler.quantize.int4_plan import Int4Plan
    from lmmprune.compiler.quantize.int8_plan import Int8Plan
    from lmmprune.facts import Facts
    from lmmprune.models.source import Source
    from lmmprune.passes.methods import Method
    from lmmprune.passes.reduce.stage import Stage


def least_opset(target: Target, opset: int) -> Target:
    """Return a target whose graphs are written in that opset at least."""
    return dataclasses.replace(target, opset=max(target.opset, opset))


def dtype_of(target: Target, dtype: str | None) -> str:
    """Return the floating-point type of the bundle: what was asked for, or the target's own."""
    dtype = dtype or target.dtype
    if dtype not in target.dtypes:
        raise InputError(f"--dtype {dtype}: target '{target.name}' takes {', '.join(target.dtypes)}")
    return dtype


def int8_of(request: Request, target: Target, dtype: str) -> Int8Plan | None:
    """Return how graphs are quantized to INT8: both, or the vision tower beside an INT4 decoder; None if none is."""
    from lmmprune.compiler.quantize.int8_plan import PARTS, Int8Plan, choose_scheme

    if request.int8 is not None and request.int4 is not None:
        raise InputError("--int8 and --int4 exclude each other, each is a way to quantize: give one")
    int8 = request.int4.vision if request.int4 is not None else request.int8
    if int8 is None:
        return None
    if request.share_weights:
        raise InputError(_SHARED.format("--int8"))
    scheme = choose_scheme(target, weights_only=int8.weights_only, dynamic=int8.dynamic, dtype=dtype)
    return Int8Plan(
        scheme=scheme,
        calibrator=int8.calibrator,
        smooth=int8.smooth,
        policy=int8.policy,
        budget=int8.budget,
        keep_float=int8.keep_float,
        parts=PARTS if request.int4 is None else PARTS[:1],
    )


def int4_of(request: Request, target: Target) -> Int4Plan | None:
    """Return how the decoder's weights become four bits, None if they don't."""
    from lmmprune.compiler.quantize.int4_plan import Int4Plan, choose_group

    int4 = request.int4
    if int4 is None:
        return None
    if request.share_weights:
        raise InputError(_SHARED.format("--int4"))
    return Int4Plan(
        group=choose_group(target, int4.group),
        whole=target.int4_whole,
        method=int4.method,
        keep_float=int4.keep_float,
    )


def carried_of(request: Request, source: Source, target: Target, dtype: str) -> CarryPlan | None:
    """Return how the integers of a checkpoint that is quantized already are taken over, None if it has none."""
    from lmmprune.compiler.quantize.carry import plan_carry

    if source.integers is None:
        return None
    given = {
        "--int8": request.int8 is not None,
        "--int4": request.int4 is not None,
        "--share-weights": request.share_weights,
        "--adapter": request.adapter is not None,
    }
    if asked := next((name for name, there in given.items() if there), None):
        raise InputError(
            f"'{request.model}' is quantized already ({source.integers}), and its integers are carried over as they"
            f" are: leave out {asked}, or give the floating-point checkpoint"
        )
    return plan_carry(source, target, dtype)


_SHARED = "--share-weights links the checkpoint's floating-point weights, {} makes new ones: leave one out"


def counts_of(request: Request, method: Method, facts: Facts) -> tuple[int, ...]:
    """Return the visual tokens per decoder layer that were asked for, ascending; none if the pictures decide."""
    from lmmprune.passes.methods import keep_count

    tokens = request.tokens
    assert not isinstance(tokens, Schedule), "which says itself how many stay, see stages_of"
    if tokens is None or isinstance(tokens, Ratio):
        return (keep_count(facts.tokens, ratio=tokens.removed if tokens else None),)
    if isinstance(tokens, Keep):
        return (keep_count(facts.tokens, keep=tokens.tokens),)
    asked = "--ratio auto" if isinstance(tokens, Auto) else "--buckets"
    if not method.counts_itself:
        raise InputError(f"{asked}: method '{method.name}' has no count of its own for a picture; use 'inflection'")
    if isinstance(tokens, Auto):
        if not 0 < tokens.percentile <= 100:
            raise InputError(f"--percentile {tokens.percentile:g}: expected 0 < percentile <= 100")
        method.check(facts)
        return ()
    if request.int8 is not None or (request.int4 is not None and request.int4.vision is not None):
        one = "--int8" if request.int8 is not None else "--int8-vision"
        raise InputError(f"--buckets and {one} don't go together yet: leave one out")
    assert isinstance(tokens, Buckets), "a schedule has no count of its own"
    return tuple(sorted({keep_count(facts.tokens, ratio=ratio) for ratio in tokens.ratios}))


def stages_of(schedule: Schedule, method: Method, facts: Facts) -> tuple[Stage, ...]:
    """Return the stages of a schedule that the user wrote."""
    from lmmprune.passes.find.sites import parse_site

    return method.plan_schedule(facts, [(parse_site(site), keep) for site, keep in schedule.counts.items()])


def check_cache(capacity: int, target: Target, entering: int, positions: int) -> None:
    """Refuse a cache of fixed length that the target can't update, or that no prompt fits into.

    Args:
        capacity: Tokens that it is to have room for.
        target: Where it will run.
        entering: Visual tokens that enter the decoder, of all pictures.
        positions: Of the model.
    """
    if not target.takes("TensorScatter"):
        able = ", ".join(name for name, other in targets.TARGETS.items() if other.takes("TensorScatter"))
        raise InputError(f"--static-cache: target '{target.name}' has no TensorScatter; targets that do: {able}")
    if not entering + 2 <= capacity <= positions:
        raise InputError(
            f"--static-cache {capacity}: expected {entering + 2} ({entering} tokens of pictures, one of the question,"
            f" one of the answer) to {positions} (the model's positions)"
        )


def check_joint(request: Request) -> None:
    """Refuse a choice among all pictures where there is one picture, nothing to choose, or something in the way."""
    if not request.joint:
        return
    others = {"--int8": request.int8 is not None, "--ratio auto": isinstance(request.tokens, Auto)}
    if request.images < 2:
        raise InputError("--joint chooses among the tokens of several pictures: add --images N")
    if request.tokens is None:
        raise InputError("--joint says how tokens are removed: add --ratio R, --keep K or --schedule")
    if other := next((name for name, given in others.items() if given), None):
        raise InputError(f"--joint and {other} don't go together yet: leave one out")


def check_images(
    request: Request,
    source: Source,
    method: Method,
    facts: Facts,
    stages: Sequence[Stage],
    entering: int,
    positions: str,
) -> None:
    """Refuse several pictures per prompt where the model, the method or another option takes one.

    Args:
        request: What the user asked for.
        source: The model.
        method: The method.
        facts: The model's numbers.
        stages: Where tokens are cut; none where pictures will decide.
        entering: Visual tokens that enter the decoder, of all pictures.
        positions: How tokens are numbered that enter the decoder.
    """
    images, family = request.images, source.family
    if not 1 <= images <= MOST_IMAGES:
        raise InputError(f"--images {images}: expected 1 to {MOST_IMAGES} pictures per prompt")
    if images == 1:
        return
    if not family.several:
        raise InputError(f"--images {images}: {family.title} takes one picture here ({family.one_picture})")
    if isinstance(request.tokens, Buckets):
        raise InputError("--images and --buckets don't go together yet: leave one out")
    planned = stages or (() if request.tokens is None else method.stages_for(facts, facts.tokens))
    inside = next((s.site for s in planned if s.site.in_decoder and (request.joint or not s.site.before_layers)), None)
    if request.joint and inside is not None:
        raise InputError(
            f"--joint: method '{method.name}' cuts at {inside}, where the pictures stand apart in the prompt: use one"
            " that cuts at vision_output or projector_output, or leave --joint out"
        )
    if inside is not None:
        raise InputError(
            f"--images {images}: method '{method.name}' cuts at {inside}, where a picture's place in the prompt must be"
            " known at export: use one that cuts at vision_output, projector_output or llm_input_0"
        )
    copies = 1 if request.joint else images
    numbered = copies * facts.tokens if positions == "original" and not source.decoder.rotary_rows else entering
    if numbered + 2 > source.decoder.max_positions:
        raise InputError(
            f"--images {images}: the pictures take {numbered} of the model's {source.decoder.max_positions} positions,"
            " and the question needs some: give fewer, or --positions contiguous with a larger --ratio"
        )


def positions_of(asked: str | None, method: Method, *, rows: int = 1) -> str:
    """Return how tokens are numbered that enter the decoder, and those behind cuts inside it.

    Args:
        asked: ``--positions``.
        method: The method.
        rows: Numbers that say where a token stands.
    """
    if asked not in (None, "contiguous", "original"):
        raise InputError(f"--positions {asked}: expected 'contiguous' or 'original'")
    if rows > 1:
        # Row and column are what a token saw, not how many tokens came before it: there is nothing to renumber.
        if asked == "contiguous":
            raise InputError(
                "--positions contiguous: this model numbers visual tokens by their row and column in the picture, which"
                " stay what they are; leave it out"
            )
        return "original"
    return asked or method.positions
