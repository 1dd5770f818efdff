"""The cells of a study: every method at every ratio in every precision; ratio 0 is one model whatever the method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from lmmprune.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One variant of the model.

    Attributes:
        method: What prunes; None for the unpruned model.
        ratio: Fraction of visual tokens removed, ``0 <= ratio < 1``.
        int8: Whether it is quantized.
    """

    method: str | None
    ratio: float
    int8: bool

    @property
    def name(self) -> str:
        """A name for a folder, unique in every grid: ``freepruner-0.5-int8``, ``unpruned``."""
        pruned = "unpruned" if self.method is None else f"{quote(self.method, safe='+')}-{self.ratio!r}"
        return pruned + "-int8" * self.int8

    @property
    def label(self) -> str:
        """A name for people: ``freepruner 50 %``."""
        return "unpruned" if self.method is None else f"{self.method} {percent(self.ratio)}"


UNPRUNED = Cell(method=None, ratio=0.0, int8=False)
UNPRUNED_INT8 = Cell(method=None, ratio=0.0, int8=True)


def grid(methods: Sequence[str], ratios: Sequence[float], *, int8: bool) -> tuple[Cell, ...]:
    """Return every cell once; the unpruned model comes first, asked for or not: all others are compared with it.

    Args:
        methods: Names; whether they exist is checked elsewhere.
        ratios: Fractions of visual tokens removed.
        int8: Whether every cell is wanted in INT8 too.

    Raises:
        InputError: Nothing was asked for, or a ratio is outside ``0 <= ratio < 1``.
    """
    if not methods:
        raise InputError("--methods is empty: give names of methods, separated by commas (see 'lmmprune methods')")
    if not ratios:
        raise InputError("--ratios is empty: give fractions of visual tokens to remove, such as 0,0.5,0.75")
    for ratio in ratios:
        if not 0 <= ratio < 1:
            raise InputError(
                f"--ratios {ratio:g}: it is the fraction of visual tokens removed; give numbers with 0 <= ratio < 1"
            )
    pruned = [(method, ratio) for method in dict.fromkeys(methods) for ratio in sorted(set(ratios)) if ratio > 0]
    rows: list[tuple[str | None, float]] = [(None, 0.0), *pruned]
    precisions = (False, True) if int8 else (False,)
    return tuple(Cell(method=method, ratio=ratio, int8=quantized) for method, ratio in rows for quantized in precisions)


def percent(share: float) -> str:
    """Return a share as percent, with a blank before the sign: ``0.5`` is ``50 %``."""
    return f"{100 * share:.4g} %"
