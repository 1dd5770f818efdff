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

FLOAT = "fp"
PRECISIONS = (FLOAT, "int8", "int4", "int4-gptq")
"""What a cell may be in; ``int4`` rounds to the nearest, ``int4-gptq`` on samples."""


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
        precision: One of ``PRECISIONS``.
        options: As those of ``Variant``.
        positions: As those of ``Variant``.
        code: As that of ``Variant``.
        schedule: As that of ``Variant``.
    """

    method: str | None
    ratio: float
    precision: str = FLOAT
    options: tuple[tuple[str, str], ...] = ()
    positions: str | None = None
    code: str | None = None
    schedule: tuple[str, tuple[tuple[str, int], ...]] | None = None

    @property
    def name(self) -> str:
        """A name for a folder, unique in every grid: ``freepruner-0.5-int8``, ``fastv-0.5-layer=3``, ``unpruned``."""
        end = f"-{self.precision}" * self.quantized
        if self.method is None:
            return "unpruned" + end
        amount = repr(self.ratio) if self.schedule is None else "schedule=" + _digest(repr(self.schedule[1]))
        parts = [quote(self.method, safe="+") + (f"@{self.code[:_DIGEST]}" if self.code else ""), amount]
        parts += [f"{_quoted(name)}={_quoted(value)}" for name, value in self.options]
        parts += [self.positions] if self.positions else []
        name = "-".join(parts)
        if len(name) > _LONGEST:
            name = f"{name[:_LONGEST]}~{_digest(name)}"
        return name + end

    @property
    def quantized(self) -> bool:
        """Whether it is in integers."""
        return self.precision != FLOAT

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

    def at(self, precision: str) -> Cell:
        """The same in another precision."""
        return dataclasses.replace(self, precision=precision)


UNPRUNED = Cell(method=None, ratio=0.0)


def grid(
    methods: Sequence[str | Variant], ratios: Sequence[float], *, precisions: Sequence[str] = (FLOAT,)
) -> tuple[Cell, ...]:
    """Return every cell once; the unpruned model comes first, asked for or not: all others are compared with it.

    Args:
        methods: Names or variants; whether they exist is checked elsewhere.
        ratios: Fractions of visual tokens removed.
        precisions: In which every cell is wanted, of ``PRECISIONS``.

    Raises:
        InputError: Nothing was asked for, a ratio is outside ``0 <= ratio < 1``, or a precision is unknown.
    """
    for precision in precisions:
        if precision not in PRECISIONS:
            raise InputError(f"--precisions {precision}: expected {', '.join(PRECISIONS)}")
    if FLOAT not in precisions:
        raise InputError(f"--precisions {','.join(precisions)}: add {FLOAT}, with which all others are compared")
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
                yield Cell(**vars(variant), ratio=0.0)
                continue
            for ratio in sorted(set(ratios)):
                if ratio > 0:
                    yield Cell(**vars(variant), ratio=ratio)

    wanted = [precision for precision in PRECISIONS if precision in precisions]
    return tuple(cell.at(precision) for cell in (UNPRUNED, *pruned()) for precision in wanted)


def percent(share: float) -> str:
    """Return a share as percent, with a blank before the sign: ``0.5`` is ``50 %``."""
    return f"{100 * share:.4g} %"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST]


def _quoted(text: str) -> str:
    # A hyphen is what stands between the parts of a name.
    return quote(text, safe="+").replace("-", "%2D")
