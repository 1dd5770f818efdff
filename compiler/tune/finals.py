"""Who is measured to the end, of those that no interval sent away."""

from __future__ import annotations

from collections.abc import Mapping

from lmmprune.compiler.tune.budget import Budget
from lmmprune.compiler.tune.candidate import Candidate
from lmmprune.compiler.tune.cell import Cell
from lmmprune.compiler.tune.race import front

FINALISTS = 8


def pick_finalists(
    cells: Mapping[Candidate, Cell], losses: Mapping[Candidate, float], budget: Budget
) -> list[Candidate]:
    """Return at most ``FINALISTS``: those that promise most within the budget, and some along the whole front.

    Args:
        cells: Of those that are left.
        losses: Of each, on all examples that are tuned on.
        budget: What the choice must keep.
    """
    left = list(cells)
    schedules = [one for one in left if one.schedule]

    def promise(one: Candidate) -> tuple[float, float]:
        if budget.of_loss:
            return max(losses[one] - budget.value, 0), cells[one].flops
        return losses[one], cells[one].flops

    # FLOPs say nothing of what INT8 takes, so each precision has its own front.
    best: list[Candidate] = []
    for int8 in dict.fromkeys(one.int8 for one in left):
        group = [one for one in left if one.int8 == int8]
        order = front([cells[one].flops for one in group], [losses[one] for one in group])
        best += [group[place] for place in order]
    first = sorted(best, key=promise)
    rest = sorted(left, key=promise)
    spread = best[:: max(1, len(best) // (FINALISTS // 2))]
    chosen = dict.fromkeys([*schedules, *first[: FINALISTS // 2], *spread, *first, *rest])
    return list(chosen)[:FINALISTS]
