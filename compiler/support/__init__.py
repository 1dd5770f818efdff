"""Whether a target's parser takes a graph: every violation named before a builder sees it."""

from lmmprune.compiler.support.check import Violation, find_violations, require_supported
from lmmprune.compiler.support.rules import RULES, Rule

__all__ = ["RULES", "Rule", "Violation", "find_violations", "require_supported"]
