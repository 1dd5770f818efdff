"""Several sizes of pictures, or grids of tiles, behind one decoder: which, what each keeps, what can't have them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmmprune.compiler.export.request import Pair, Request
from lmmprune.compiler.export.tile_choices import listed_grids
from lmmprune.compiler.export.values import ALL_TILES, Auto, Buckets, Schedule
from lmmprune.errors import InputError

if TYPE_CHECKING:
    from lmmprune.facts import Facts
    from lmmprune.models.source import Source
    from lmmprune.passes.methods import Method
    from lmmprune.passes.reduce.stage import Stage


@dataclass(frozen=True, kw_only=True)
class ViewPlan:
    """What is going to be done for pictures of one size, or cut into one grid of tiles.

    Attributes:
        source: The model, set to it.
        facts: Its numbers that schedules depend on.
        stages: Where its tokens are cut; none where nothing is removed.
    """

    source: Source
    facts: Facts
    stages: tuple[Stage, ...]

    @property
    def name(self) -> str:
        """What people call it, as ``View.name``."""
        return "x".join(map(str, self.source.tiles or self.source.vision.image_size))


def sources_of(request: Request, resolve: Callable[[Pair | None, Pair | None], Source]) -> tuple[Source, ...]:
    """Return the model, once for each size or grid that was asked for, in that order.

    Args:
        request: What the user asked for.
        resolve: Returns the model with pictures of a size, or cut into a grid.

    Raises:
        InputError: One was asked for twice, or the model has one size, or no tiles.
        ModelError: The model can't have one of them.
    """
    sizes: tuple[Pair | None, ...] = _distinct("--image-size", request.image_sizes) or (None,)
    grids: tuple[Pair | None, ...] = _distinct("--tiles", listed_grids(request.tiles)) or (None,)
    first = resolve(sizes[0], grids[0])
    if first.family.arrange is None:
        return (first, *(resolve(size, grids[0]) for size in sizes[1:]))
    if len(sizes) > 1:
        height, width = first.vision.image_size
        raise InputError(f"--image-size: {first.family.title} takes {height} x {width} pixels; leave it out")
    if request.tiles == ALL_TILES:
        return tuple(resolve(sizes[0], grid) for grid in first.grids)
    return (first, *(resolve(sizes[0], grid) for grid in grids[1:]))


def _distinct(option: str, given: tuple[Pair, ...]) -> tuple[Pair, ...]:
    for one in given:
        if given.count(one) > 1:
            raise InputError(f"{option} {one[0]}x{one[1]} is given {given.count(one)} times: give each one once")
    return given


def largest(sources: Sequence[Source]) -> Source:
    """Return the one with the most visual tokens, of equal ones the first: the decoder has room for its features."""
    return max(sources, key=lambda source: source.vision.tokens)


def check_views(request: Request, method: Method, stages: Sequence[Stage]) -> None:
    """Refuse several sizes or grids where the method or another option takes one.

    Args:
        request: What the user asked for.
        method: The method.
        stages: Where the tokens of the largest are cut.
    """
    option = "--image-size" if len(request.image_sizes) > 1 else "--tiles"
    others = {
        "--buckets": isinstance(request.tokens, Buckets),
        "--ratio auto": isinstance(request.tokens, Auto),
        "--schedule": isinstance(request.tokens, Schedule),
        "--joint": request.joint,
    }
    if other := next((name for name, given in others.items() if given), None):
        raise InputError(f"several {option} and {other} don't go together yet: give one, or leave {other} out")
    inside = next((one.site for one in stages if one.site.in_decoder and not one.site.before_layers), None)
    if inside is not None:
        raise InputError(
            f"several {option}: method '{method.name}' cuts at {inside}, behind which the decoder has one number of"
            " tokens: use one that cuts at vision_output, projector_output or llm_input_0"
        )


def check_room(plans: Sequence[ViewPlan], rows: int, entering: Callable[[Sequence[Stage], Facts], int]) -> None:
    """Refuse sizes of which a smaller one would keep more tokens than the one with the most.

    Args:
        plans: All sizes or grids.
        rows: Tokens of the one with the most before pruning that enter the decoder.
        entering: Returns those of the others.
    """
    for plan in plans:
        if (count := entering(plan.stages, plan.facts)) > rows:
            raise InputError(
                f"pictures of {plan.name} would keep {count} tokens and larger ones {rows}: give sizes nearer to each"
                " other, or --keep"
            )
