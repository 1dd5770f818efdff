"""Whatever the code of a foreign method does wrong is one line: method, hook, place, what was expected."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from cuts import DECODER, PREFIX, TOKENS, cut_decoder
from towers import Tower

from lmmprune.errors import InputError, LmmpruneError
from lmmprune.facts import Facts
from lmmprune.passes.methods import get_method
from lmmprune.passes.reduce.reduce_vision import ReduceVision

FACTS = Facts(tokens=9, grid=(3, 3), encoder_layers=3, decoder_layers=2, has_cls=True)
HEAD = """
import sys
from dataclasses import dataclass
import numpy as np
from lmmprune.errors import InputError
from lmmprune.passes.find.sites import VISION_OUTPUT, Site
from lmmprune.passes.methods import Method
from lmmprune.passes.reduce.rules import Outcome, Reduce
from lmmprune.passes.reduce.stage import Stage

@dataclass(frozen=True, kw_only=True)
class Mine(Method):
    name = "mine"
    reference = exactness = "x"
    p: int = 2

    def filter(self, at):
        return at.b.op("ReduceL2", at.visual, [2], keepdims=0)

"""


def use(body: str, folder: Path) -> Callable[[], None]:
    """Write a method whose class ends with this text; return what prunes a tower with it."""
    file = folder / "mine.py"
    file.write_text(HEAD + textwrap.indent(textwrap.dedent(body), "    "))

    def prune() -> None:
        method = get_method("mine", file=file)
        stages = method.plan(FACTS, 4)
        ReduceVision(method="mine", stages=stages, grid=(3, 3))(Tower(patches=9).graph())

    return prune


def returning(hook: str, value: str) -> str:
    return f"def {hook}:\n    return {value}\n"


LEAVING = ("1 / 0", "sys.exit(0)", "raise KeyboardInterrupt", "raise RuntimeError('a\\nb' * 1000)", "self.nothing")
HOOKS = ("filter(self, at)", "counts(self, model, target)", "stages(self, model, target)", "check(self, model)")
HOOKS += ("plan(self, model, target)", "rule(self)", "__post_init__(self)")


@pytest.mark.parametrize("does", LEAVING)
@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_that_raises_or_leaves(hook: str, does: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        use(f"def {hook}:\n    {does}\n", tmp_path)()
    line = str(caught.value)
    assert f"{tmp_path / 'mine.py'}:{len(HEAD.splitlines()) + 2}" in line
    assert line.startswith("method 'mine', ")
    assert "; expected " in line
    assert "\n" not in line


@pytest.mark.parametrize("does", ["sys.exit(0)", "raise KeyboardInterrupt", "1 / 0"])
def test_a_file_that_leaves_while_it_is_read(does: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(f"import sys\n{does}\n")
    with pytest.raises(InputError, match=r"mine.py, line 2: .*; mend the file"):
        get_method("mine", file=tmp_path / "mine.py")


WRONG = {
    returning("counts(self, model, target)", "[]"): r"counts\(\) .*it returned \[\]; expected a list of \(Site",
    returning("counts(self, model, target)", "None"): "it returned None",
    returning("counts(self, model, target)", '[("vision_output", 4)]'): "it returned .'vision_output', 4",
    returning("counts(self, model, target)", "[(VISION_OUTPUT, 0)]"): "is 0: expected a whole number in 1..9",
    returning("counts(self, model, target)", "[(VISION_OUTPUT, 4.0)]"): "is 4.0: expected a whole number",
    returning("counts(self, model, target)", "[(VISION_OUTPUT, 9)]"): r"plan\(\) .*nothing is removed, although 4 of 9",
    returning("stages(self, model, target)", "()"): r"plan\(\) .*nothing is removed",
    returning("stages(self, model, target)", "[3]"): r"stages\(\) .*it returned \[3\]; expected a tuple of Stage",
    returning("plan(self, model, target)", "None"): r"plan\(\) .*it returned None",
    returning("check(self, model)", "True"): r"check\(\) .*it returned True; expected nothing",
    returning("rule(self)", "3"): r"rule\(\) .*it returned 3",
    returning("rule(self)", "lambda at, keep: None"): "the rule .*it returned None; expected an Outcome",
    returning("rule(self)", "lambda at, keep: 1 / 0"): "the rule .*ZeroDivisionError",
    returning("rule(self)", "Reduce(filter=lambda at: at.visual)"): r"filter\(\) at vision_output: it returned FLOAT",
    returning("rule(self)", "lambda at, keep: Outcome(kept=at.b.constant([[0, 1, 2, 3, 4]]))"): (
        r"kept of its rule at vision_output: it returned INT64 \[1, 5\]; expected INT64 \[1, 4\]"
    ),
    returning("filter(self, at)", "None"): r"filter\(\) .*it returned None; expected an ONNX value \[B,n\] float32",
    returning("filter(self, at)", "at.b.op('ReduceL2', at.stream, [2], keepdims=0)"): (
        r"filter\(\) at vision_output: it returned FLOAT \[1, 10\]; expected FLOAT \[1, 9\]"
    ),
    returning("filter(self, at)", "at.b.op('ReduceL2', at.visual, [0, 1], keepdims=0)"): r"returned FLOAT \[\d+\]; exp",
    returning("filter(self, at)", "at.b.constant(np.zeros((1, 9), np.int64))"): r"returned INT64 \[1, 9\]; expected FL",
    "site = 'vision_output'": "states site = 'vision_output': expected one of",
    "name = 'a b\\n'": "states name = 'a b.*: expected up to 60 letters",
    "positions = 'other'": "states positions = 'other': expected original or contiguous",
    "needs_cls = 3": "states needs_cls = 3: expected True or False",
    "q: object = object()": "parameters .*not JSON serializable; expected numbers, texts",
}


@pytest.mark.parametrize("body", WRONG)
def test_a_hook_that_returns_something_else(body: str, tmp_path: Path) -> None:
    with pytest.raises(LmmpruneError, match=WRONG[body]):
        use(body, tmp_path)()


IN_DECODER = {
    "at.b.op('ReduceL2', at.stream, [2], keepdims=0)": r"filter\(\) at llm_layer_1: it returned FLOAT \[1, 1\d\]",
    "at.visual": "shape inference failed: .*/llm_layer_1/Concat",
    "at.b.op('ReduceL2', at.visual, [1, 2], keepdims=0)": "shape inference failed: .*/llm_layer_1/Concat",
    "None": r"filter\(\) .*it returned None",
    "1 / 0": r"filter\(\) at .*ZeroDivisionError",
}


@pytest.mark.parametrize("does", [*IN_DECODER, "at.b.op('ReduceL2', at.visual, [2], keepdims=0)"])
def test_scores_in_the_decoder(does: str, tmp_path: Path) -> None:
    text = HEAD + textwrap.indent(
        f"site = Site(kind='llm_layer', layer=1)\n\n{returning('filter(self, at)', does)}", "    "
    )
    (tmp_path / "mine.py").write_text(text)
    facts = Facts(tokens=TOKENS, grid=(2, 4), encoder_layers=3, decoder_layers=4, has_cls=True)
    stages = get_method("mine", file=tmp_path / "mine.py").plan(facts, 4)
    if does not in IN_DECODER:
        cut_decoder(DECODER, stages, tokens=TOKENS, prefix=PREFIX)
        return
    with pytest.raises(LmmpruneError, match=IN_DECODER[does]):
        cut_decoder(DECODER, stages, tokens=TOKENS, prefix=PREFIX)


def test_what_lmmprune_says_goes_on_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^only squares$"):
        use("def check(self, model):\n    raise InputError('only squares')\n", tmp_path)()


def test_a_whole_method_is_guarded_once_and_prunes(tmp_path: Path) -> None:
    prune = use("", tmp_path)
    prune()
    method = get_method("mine", file=tmp_path / "mine.py")
    hook = type(method).filter
    assert get_method(method) is method
    assert type(method).filter is hook
    assert not method.counts_itself
