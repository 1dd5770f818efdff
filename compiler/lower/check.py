"""Hold a lowered graph against the rules of a target's parser."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from lmmprune.compiler.lower.parser_rules import RULES
from lmmprune.compiler.targets.target import Target
from lmmprune.errors import TargetError


@dataclass(frozen=True, kw_only=True)
class Violation:
    """One thing that a target doesn't take.

    Attributes:
        rule: Name in ``RULES``.
        node: Name of the node; empty where the graph as a whole is meant.
        op_type: Its operator.
        found: What is there.
        source: Where the rule is written.
        advice: What to do.
    """

    rule: str
    node: str
    op_type: str
    found: str
    source: str
    advice: str

    def __str__(self) -> str:
        """Say it in one line."""
        where = f"'{self.node}' ({self.op_type}): " if self.node else ""
        return f"{where}{self.found} [{self.rule}; {self.source}]: {self.advice}"


def find_violations(model: ir.Model, target: Target) -> list[Violation]:
    """Return everything in a lowered graph that a target's parser doesn't take, rule by rule.

    Targets that ONNX Runtime serves have no parser of their own, and no violations.
    """
    if target.parser is None:
        return []
    return [
        Violation(
            rule=name,
            node="" if node is None else str(node.name or node.outputs[0].name),
            op_type="" if node is None else node.op_type,
            found=found,
            source=rule.source,
            advice=rule.advice,
        )
        for name, rule in RULES.items()
        for node, found in rule.find(model, target)
    ]


def require_supported(model: ir.Model, target: Target) -> None:
    """Refuse a graph that the target's parser doesn't take.

    Raises:
        TargetError: It doesn't; the first violation and the number of the others.
    """
    violations = find_violations(model, target)
    if violations:
        others = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        raise TargetError(
            f"target '{target.name}' can't take {model.graph.name or 'the graph'}: {violations[0]}{others}"
        )
