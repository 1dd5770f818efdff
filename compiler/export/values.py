"""What an export takes as values: how many visual tokens stay, and how to quantize. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lmmprune.errors import InputError
from lmmprune.limits import read_json


@dataclass(frozen=True)
class Ratio:
    """Remove a fixed fraction of the visual tokens.

    Attributes:
        removed: Fraction that is removed, ``0 <= removed < 1``.
    """

    removed: float


@dataclass(frozen=True)
class Keep:
    """Keep a fixed number of visual tokens.

    Attributes:
        tokens: How many stay, 1 or more.
    """

    tokens: int


@dataclass(frozen=True)
class Auto:
    """Let the method count on pictures, and keep what serves most of them (``--ratio auto``).

    Attributes:
        percentile: Percent of the pictures that the count serves, ``0 < percentile <= 100``.
    """

    percentile: float = 90.0


@dataclass(frozen=True, init=False)
class Buckets:
    """Offer several counts behind one encoder; each picture takes the smallest that the method finds enough for it.

    Attributes:
        ratios: Fractions that are removed, each ``0 <= ratio < 1``.
    """

    ratios: tuple[float, ...]

    def __init__(self, ratios: Iterable[float]) -> None:
        """Take the fractions in any order.

        Raises:
            InputError: There are none.
        """
        object.__setattr__(self, "ratios", tuple(ratios))
        if not self.ratios:
            raise InputError("--buckets is empty: give one ratio or more, such as 0.5,0.75")


@dataclass(frozen=True)
class Schedule:
    """Let so many visual tokens leave each of these sites, for methods that can cut at any decoder layer.

    Attributes:
        counts: Site -> tokens that leave it, as in ``{"llm_input_1": 100, "llm_input_3": 20}``.
    """

    counts: Mapping[str, int]

    @classmethod
    def read(cls, path: Path) -> Schedule:
        """Read a JSON file that holds such an object.

        Raises:
            InputError: It can't be read, or holds something else.
        """
        try:
            found = read_json(path, once=True)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise InputError(f"--schedule: '{path}' can't be read as JSON ({reason})") from error
        whole = isinstance(found, dict) and all(type(count) is int for count in found.values())
        if not whole:
            raise InputError(
                f"--schedule: '{path}' isn't an object of sites and whole numbers, such as {{\"llm_input_2\": 72}}"
            )
        return cls(found)


ALL_TILES: Literal["all"] = "all"
Tiles = tuple[int, int] | tuple[tuple[int, int], ...] | Literal["all"]
"""Rows and columns that pictures are cut into, several such pairs, or ``ALL_TILES``: each of the processor's own."""

Tokens = Ratio | Keep | Auto | Buckets | Schedule


@dataclass(frozen=True, kw_only=True)
class Int8:
    """Quantize to INT8, calibrated on the pruned graphs.

    Attributes:
        weights_only: INT8 weights, float arithmetic; nothing is calibrated.
        dynamic: Ranges of each run instead of calibrated ones (``ort-cpu``).
        policy: ``all`` blocks, or ``auto``: what hurts most stays in float until the error is within the budget.
        budget: Relative error of the outputs that ``auto`` allows, ``0 < budget < 1``.
        keep_float: Blocks that stay in float in any case, ``vision:NAME`` or ``decoder:NAME``.
        smooth: Whether SmoothQuant's strengths are searched, layer by layer.
        calibrator: ``minmax``, ``percentile``, ``entropy`` or ``mse``.
    """

    weights_only: bool = False
    dynamic: bool = False
    policy: str = "all"
    budget: float = 0.05
    keep_float: tuple[str, ...] = ()
    smooth: bool = True
    calibrator: str = "minmax"

    def __post_init__(self) -> None:
        """Refuse two ways at once.

        Raises:
            InputError: Weights only and dynamic exclude each other.
        """
        object.__setattr__(self, "keep_float", tuple(self.keep_float))
        if self.weights_only and self.dynamic:
            raise InputError(
                "--int8-weights-only and --int8-dynamic exclude each other, each is a way to quantize: give one"
            )


@dataclass(frozen=True, kw_only=True)
class Int4:
    """Store the decoder's weights in four bits; arithmetic and the vision tower stay in floating point.

    Attributes:
        group: Inputs of a weight that share a scale: 32, 64 or 128; None: the target's usual number.
        method: ``rtn`` rounds to the nearest; ``gptq`` on samples, so that products err least.
        keep_float: Blocks of the decoder that stay in float, ``decoder:NAME``.
        vision: How to quantize the vision tower to INT8 beside it; None: not at all.
    """

    group: int | None = None
    method: str = "rtn"
    keep_float: tuple[str, ...] = ()
    vision: Int8 | None = None

    def __post_init__(self) -> None:
        """Take the blocks in any form."""
        object.__setattr__(self, "keep_float", tuple(self.keep_float))
