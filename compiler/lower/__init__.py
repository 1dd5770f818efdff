"""Whether a target's parser takes a graph: every violation named before a builder sees it."""

from lmmprune.compiler.lower.check import Violation, find_violations, require_supported
from lmmprune.compiler.lower.parser_rules import RULES, ParserRule

__all__ = ["RULES", "ParserRule", "Violation", "find_violations", "require_supported"]
