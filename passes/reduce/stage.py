"""A step of a method on a model: at this site, so many tokens stay, decided by this rule."""

from __future__ import annotations

from dataclasses import dataclass

from lmmprune.passes.find.sites import Site
from lmmprune.passes.reduce.rules import ReductionRule


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One site of a method's schedule.

    Attributes:
        site: Where.
        keep: Visual tokens that leave it.
        rule: Which ones, and what becomes of the others.
        prune_text: Tokens of the question that go too (sites in the decoder).
    """

    site: Site
    keep: int
    rule: ReductionRule
    prune_text: int = 0
