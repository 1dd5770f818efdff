"""Method files that raise, leave, return the wrong thing or nothing: in every hook."""

from __future__ import annotations

import random
import tempfile
import textwrap
from pathlib import Path
from typing import Any

from faults.command_line import call, fault_of
from faults.tally import Row, Rows, while_time_lasts

HEAD = """
import sys
from dataclasses import dataclass
import numpy as np
from lmmprune.passes.find.sites import VISION_OUTPUT, Site, llm_layer, vision_layer
from lmmprune.passes.methods import Method
from lmmprune.passes.reduce.rules import Merge, Outcome, Reduce
from lmmprune.passes.reduce.stage import Stage

@dataclass(frozen=True, kw_only=True)
class Mine(Method):
    name = "mine"
    reference = exactness = "x"

    def filter(self, at):
        return at.b.op("ReduceL2", at.visual, [2], keepdims=0)
"""
HOOKS = (
    *("filter(self, at)", "counts(self, model, target)", "stages(self, model, target)", "plan(self, model, target)"),
    *("check(self, model)", "rule(self)", "rule_at_output(self)", "__post_init__(self)", "at_output_only(self)"),
)
LEAVING = (
    *("sys.exit(0)", "sys.exit('bye')", "raise KeyboardInterrupt", "raise GeneratorExit", "1 / 0", "self.nothing()"),
    *("raise RuntimeError('a\\x00\\x1b[31m' * 5000)", "self.filter(self.filter)", "[].pop()", "assert False"),
    *("return self.plan(*[model, target])", "import nothing_of_that_name", "return super().nothing"),
)
WRONG = (
    *("None", "0", "-1", "True", "''", "[]", "()", "{}", "[None]", "[('vision_output', 3)]", "[(VISION_OUTPUT, 0)]"),
    *(
        "[(VISION_OUTPUT, 10**9)]",
        "[(VISION_OUTPUT, 2.5)]",
        "[VISION_OUTPUT]",
        "(3,)",
        "lambda *given: None",
        "object()",
    ),
    *("[Stage(site=VISION_OUTPUT, keep=-1, rule=None)]", "[(llm_layer(99), 3)]", "[(vision_layer(99), 3)]", "object()"),
    *("[(Site(kind='x'), 3)]", "Reduce(filter=None)", "Reduce(filter=lambda at: at.stream)", "Outcome(kept=None)"),
    *("lambda at, keep: Outcome(kept=at.b.constant([[0]]))", "lambda at, keep: Outcome(kept=at.visual)"),
)
SCORES = (
    *("at.visual", "at.stream", "at.b.constant([1.0, 2.0])", "at.b.constant(np.zeros((1, 3)))", "np.zeros((1, 9))"),
    *("at.b.op('ReduceL2', at.stream, [2], keepdims=0)", "at.b.op('ReduceL2', at.visual, [1], keepdims=0)"),
    *("at.b.op('Nothing', at.visual)", "at.b.op('ReduceL2', at.visual, [2])", "at.b.op('Add', 3, 'x')"),
    *("at.b.op('Cast', at.b.op('ReduceL2', at.visual, [2], keepdims=0), to=11)", "at.at_layer(99)", "at.nothing"),
    *("at.b.constant(np.zeros((1, at.tokens), np.int64))", "at.rows(at.visual, 'nonsense', 1)"),
)


def run(seconds: float, seed: int) -> list[Row]:
    """Prune a small vision tower with one wrong method after the other."""
    import foreign_towers

    rng, rows = random.Random(seed), Rows("method files")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        tower = foreign_towers.saved(home, foreign_towers.exported("clip"))
        (home / "mine.py").write_text(HEAD)
        if call(*_rewrite(tower, home / "out.onnx", home / "mine.py")).code != 0:
            raise RuntimeError(
                "the method that is right isn't taken: what is wrong would be refused for another reason"
            )
        for _ in while_time_lasts(seconds, at_least=10):
            kind, body = _wrong(rng)
            (home / "mine.py").write_text(body)
            output = home / "out.onnx"
            called = call(*_rewrite(tower, output, home / "mine.py"))
            # Some hooks aren't asked here, and to return nothing is right for some.
            fault = fault_of(called, must_refuse=kind == "a wrong score")
            rows[kind].count(fault, f"{body.removeprefix(HEAD)}: {called.code} {called.err[-300:]!r}")
    return rows.list()


def _rewrite(tower: Path, output: Path, file: Path) -> list[Any]:
    import foreign_towers

    size = ("--image-size", foreign_towers.SIDE)
    return ["rewrite", tower, *size, "-o", output, "--force", "--method", "mine", "--method-file", file, "--keep", 5]


def _wrong(rng: random.Random) -> tuple[str, str]:
    """Return the kind of fault, and a file with it."""
    kind = rng.choice(("at import", "raises or leaves", "returns something else", "a wrong score", "states"))
    if kind == "at import":
        return kind, rng.choice(
            ("import sys\nsys.exit(0)", "raise KeyboardInterrupt", "x = (", "\0", "1/0", "", "\ufeffx")
        )
    if kind == "states":
        name = rng.choice(("name", "site", "positions", "epsilon", "correlate", "redundancy", "needs_cls", "sites"))
        return kind, f"{HEAD}\n    {name} = {rng.choice(WRONG)}\n"
    if kind == "a wrong score":
        hook, does = "filter(self, at)", f"return {rng.choice(SCORES)}"
    else:
        hook = rng.choice(HOOKS)
        does = rng.choice(LEAVING) if kind == "raises or leaves" else f"return {rng.choice(WRONG)}"
    return kind, HEAD + textwrap.indent(f"\ndef {hook}:\n    {does}\n", "    ")
