"""What ``verify`` found, in a form that a test can expect."""

from __future__ import annotations

from collections.abc import Iterable

from lmmprune.compiler.verify.verify import Check


def not_held(checks: Iterable[Check]) -> dict[str, str]:
    """Return what failed or couldn't be told, and why."""
    return {check.name: check.found for check in checks if not check.passed}
