"""The cells of a study: every variant of every method at every ratio in every precision; ratio 0 is one model."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from lmmprune.errors import InputError

# File systems take 255 bytes; what the study adds to a name stays within the rest.
_LONGEST = 180
_DIGEST = 12


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One method as it shall be measured.

    Attributes:
        method: Its name.
        options: Hyper-parameters that differ from its own defaults, as text, in the order of their names.
        positions: ``contiguous`` or ``original``; None: the method's own.
        code: Digest of the file that defines it; None for one that is installed.
        schedule: What a schedule is called, and how many tokens leave each of its sites; None: the ratio decides.
    """

    method: str
    options: tuple[tuple[str, str], ...] = ()
    positions: str | None = None
    code: str | None = None
    schedule: tuple[str, tuple[tuple[str, int], ...]] | None = None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One variant of the model.

    Attributes:
        method: What prunes; None for the unpruned model.
        ratio: Fraction of visual tokens removed, ``0 <= ratio < 1``; 0 where a schedule decides.
        int8: Whether it is quantized.
        options: As those of ``Variant``.
        positions: As those of ``Variant``.
        code: As that of ``Variant``.
        schedule: As that of ``Variant``.
    """

    method: str | None
    ratio: float
    int8: bool
    options: tuple[tuple[str, str], ...] = ()
    positions: str | None = None
    code: str | None = None
    schedule: tuple[str, tuple[tuple[str, int], ...]] | None = None

    @property
    def name(self) -> str:
        """A name for a folder, unique in every grid: ``freepruner-0.5-int8``, ``fastv-0.5-layer=3``, ``unpruned``."""
        if self.method is None:
            return "unpruned" + "-int8" * self.int8
        amount = repr(self.ratio) if self.schedule is None else "schedule=" + _digest(repr(self.schedule[1]))
        parts = [quote(self.method, safe="+") + (f"@{self.code[:_DIGEST]}" if self.code else ""), amount]
        parts += [f"{_quoted(name)}={_quoted(value)}" for name, value in self.options]
        parts += [self.positions] if self.positions else []
        name = "-".join(parts)
        if len(name) > _LONGEST:
            name = f"{name[:_LONGEST]}~{_digest(name)}"
        return name + "-int8" * self.int8

    @property
    def series(self) -> str:
        """Method with what sets it apart from others of its name: one line of a chart; empty for the unpruned model."""
        more = [f"{name}={value}" for name, value in self.options] + [self.positions] * bool(self.positions)
        return " ".join(filter(None, (self.method, *more)))

    @property
    def label(self) -> str:
        """A name for people: ``freepruner 50 %``, ``fastv layer=3 50 %``."""
        if self.method is None:
            return "unpruned"
        return f"{self.series} {percent(self.ratio) if self.schedule is None else self.schedule[0]}"

    @property
    def twin(self) -> Cell:
        """The same in the other precision."""
        return dataclasses.replace(self, int8=not self.int8)


UNPRUNED = Cell(method=None, ratio=0.0, int8=False)
UNPRUNED_INT8 = Cell(method=None, ratio=0.0, int8=True)


def grid(methods: Sequence[str | Variant], ratios: Sequence[float], *, int8: bool) -> tuple[Cell, ...]:
    """Return every cell once; the unpruned model comes first, asked for or not: all others are compared with it.

    Args:
        methods: Names or variants; whether they exist is checked elsewhere.
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

    def pruned() -> Iterator[Cell]:
        for one in dict.fromkeys(methods):
            variant = Variant(method=one) if isinstance(one, str) else one
            if variant.schedule is not None:
                yield Cell(**vars(variant), ratio=0.0, int8=False)
                continue
            for ratio in sorted(set(ratios)):
                if ratio > 0:
                    yield Cell(**vars(variant), ratio=ratio, int8=False)

    precisions = (False, True) if int8 else (False,)
    return tuple(
        dataclasses.replace(cell, int8=quantized) for cell in (UNPRUNED, *pruned()) for quantized in precisions
    )


def percent(share: float) -> str:
    """Return a share as percent, with a blank before the sign: ``0.5`` is ``50 %``."""
    return f"{100 * share:.4g} %"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST]


def _quoted(text: str) -> str:
    # A hyphen is what stands between the parts of a name.
    return quote(text, safe="+").replace("-", "%2D")
