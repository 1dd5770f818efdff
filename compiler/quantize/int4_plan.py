"""How a decoder's weights become four bits: what the user asked for, held against what the target takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmmprune.compiler.quantize.int8_plan import POLICIES
from lmmprune.compiler.quantize.sensitivity import Sensitivity
from lmmprune.compiler.targets.target import Target
from lmmprune.errors import InputError, suggestion

METHODS = ("rtn", "gptq")
"""To the nearest; or on samples, so that products err least."""


@dataclass(frozen=True, kw_only=True)
class Int4Plan:
    """What to quantize, and how.

    Attributes:
        group: Inputs that share a scale.
        whole: Whether they must divide a weight's inputs.
        method: One of ``METHODS``.
        keep_float: Blocks of the decoder that stay in float, ``decoder:NAME``.
        policy: ``all`` other blocks, or ``auto``: those that hurt most stay in float until the error is within the
            budget.
        budget: Relative error of the logits that ``auto`` allows.
    """

    group: int
    whole: bool
    method: str = "rtn"
    keep_float: tuple[str, ...] = ()
    policy: str = "all"
    budget: float = 0.05

    def __post_init__(self) -> None:
        """Check what can be checked without the graphs.

        Raises:
            InputError: No such method or policy, a budget that can't be, or a block of another graph than the decoder.
        """
        if self.method not in METHODS:
            raise InputError(
                f"--int4-method {self.method}: expected {' or '.join(METHODS)}{suggestion(self.method, METHODS)}"
            )
        if self.policy not in POLICIES:
            raise InputError(f"--int4-policy {self.policy}: expected all or auto{suggestion(self.policy, POLICIES)}")
        if not 0 < self.budget < 1:
            raise InputError(f"--int4-budget {self.budget:g}: expected a relative error, 0 < budget < 1")
        for name in self.keep_float:
            part, _, block = name.partition(":")
            if part == "vision" and block:
                raise InputError(
                    f"--keep-float {name}: with --int4 all of the vision tower stays in float: leave it out, or add"
                    " --int8-vision"
                )
            if part != "decoder" or not block:
                raise InputError(f"--keep-float {name}: expected decoder:BLOCK (see 'lmmprune inspect')")

    @property
    def calibrated(self) -> bool:
        """Whether samples are run before."""
        return self.rounds or self.policy == "auto"

    @property
    def rounds(self) -> bool:
        """Whether weights are rounded on samples."""
        return self.method != "rtn"

    @property
    def kept(self) -> frozenset[str]:
        """The blocks of the decoder that the user wants in float."""
        return frozenset(name.split(":", 1)[1] for name in self.keep_float)

    def record(self, seen: Sensitivity | None) -> Mapping[str, Any]:
        """Return what the manifest says of it beside its name, and what a scan found; None: there was none."""
        if seen is None:
            return {"float": sorted(self.kept), "rounded": self.method}
        found = {"errors": dict(seen.errors), "error_all_int4": seen.everything, "error": seen.error}
        return {"float": sorted(self.kept | set(seen.keep_float)), "rounded": self.method, **found}


def choose_group(target: Target, asked: int | None) -> int:
    """Return how many inputs share a scale: what was asked for, or the target's usual number.

    Raises:
        InputError: The target takes others.
    """
    group = target.int4_groups[0] if asked is None else asked
    if group not in target.int4_groups:
        takes = ", ".join(map(str, sorted(target.int4_groups)))
        raise InputError(f"--int4-group {group}: target '{target.name}' takes groups of {takes}")
    return group
