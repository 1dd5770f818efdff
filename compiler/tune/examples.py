"""Which examples the choice is made on, and which ones it is reported on: no picture is in both."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from lmmprune.compiler.data.questions import Question
from lmmprune.errors import InputError


def split(examples: Sequence[Question], heldout: Sequence[Question] | None) -> tuple[list[Question], list[Question]]:
    """Return the examples to tune on and those for the final numbers, those of one picture together.

    Args:
        examples: Pictures with prompts.
        heldout: Others for the final numbers; None: every other picture of ``examples``, in an order that only the
            names decide.

    Raises:
        InputError: There is a single picture, and nothing to report on.
    """
    names = sorted(dict.fromkeys(one.picture for one in examples), key=_order)
    if heldout is not None:
        return _of(examples, names), sorted(heldout, key=lambda one: one.picture)
    if len(names) < 2:
        raise InputError(
            f"{len(names)} picture in --data: one is tuned on and another one reported on; give two or more, better"
            " hundreds, or --heldout with others"
        )
    return _of(examples, names[::2]), _of(examples, names[1::2])


def _of(examples: Sequence[Question], names: Sequence[str]) -> list[Question]:
    places = {name: place for place, name in enumerate(names)}
    return sorted((one for one in examples if one.picture in places), key=lambda one: places[one.picture])


def _order(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
