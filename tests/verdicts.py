"""What ``verify`` found, in a form that a test can expect."""

from __future__ import annotations

from collections.abc import Iterable

from lmmprune.compiler.verify import Check


def not_held(checks: Iterable[Check]) -> dict[str, str]:
    """Return what failed or couldn't be told, and why.

    Random checkpoints have no chat template, so that transformers' processor makes no prompts to compare with; that one
    reason is left out.
    """
    return {
        check.name: check.found
        for check in checks
        if not check.passed and not (check.passed is None and "has no chat template" in check.found)
    }
