"""One guard around everything that the code of a foreign method does: what it raises or returns is its own affair.

A hook that raises, leaves the program or returns something else than it should becomes one line with the method, the
hook, the place in its file, and what was expected. Errors of lmmprune that a hook raises on purpose go on as they are.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import onnx_ir as ir

from lmmprune.errors import InputError, LmmpruneError, said
from lmmprune.facts import Facts
from lmmprune.limits import bounded, shortened
from lmmprune.passes.find.sites import Site
from lmmprune.passes.methods.method import Method
from lmmprune.passes.reduce.returned import expect_returned
from lmmprune.passes.reduce.rules import Outcome, Reduce, ReductionRule
from lmmprune.passes.reduce.site_context import SiteContext
from lmmprune.passes.reduce.stage import Stage

_GUARDED = "_lmmprune_guarded"
_MOST = 2**20  # tokens
_FLOAT, _INT64 = ir.DataType.FLOAT, ir.DataType.INT64


def guarded(method: type[Method]) -> type[Method]:
    """Put the guard around the hooks of a method from outside; once, and in place."""
    if _ours(method) or _GUARDED in vars(method):
        return method
    for hook, (expected, check) in _HOOKS.items():
        # A method counts itself if it has another ``count``: what isn't its own stays.
        if hook == "plan" or getattr(method, hook) is not getattr(Method, hook):
            setattr(method, hook, _around(getattr(method, hook), hook, expected, check))
    setattr(method, _GUARDED, True)
    return method


@contextlib.contextmanager
def blamed(method: type[Method], hook: str, expected: str) -> Iterator[None]:
    """Turn whatever a method's code raises into one line.

    Args:
        method: The method.
        hook: What was called.
        expected: What it should do.

    Raises:
        InputError: It raised, or tried to leave the program.
    """
    try:
        yield
    except LmmpruneError:
        raise
    except BaseException as error:  # also SystemExit and KeyboardInterrupt: inside of a hook they are its fault
        if _ours(method):
            raise
        where = f"method {shortened(getattr(method, 'name', method.__name__))}, {hook} {_place(method, error)}"
        raise InputError(f"{where}: {said(error)}; expected {expected}") from error


def check_plain(method: Method) -> None:
    """Refuse hyper-parameters that a manifest can't hold.

    Raises:
        InputError: They aren't plain data.
    """
    with blamed(type(method), "parameters", "numbers, texts, true or false, and lists of them"):
        json.dumps(method.parameters, allow_nan=False)


def _ours(method: type[Method]) -> bool:
    return method.__module__.startswith("lmmprune.")


def _around(function: Callable[..., Any], hook: str, expected: str, check: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(self: Method, *args: Any) -> Any:
        with blamed(type(self), f"{hook}()", expected):
            found = function(self, *args)
            return check(self, found, *args)

    return call


def _place(method: type[Method], error: BaseException) -> str:
    """Return the line of the method's own file that was reached, or where its class stands."""
    try:
        file = inspect.getfile(method)
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        line = frames[-1].lineno if frames else inspect.getsourcelines(method)[1]
    except (OSError, TypeError):  # a class that was typed in has no file
        return f"of '{method.__module__}'"
    return f"at {file}:{line}"


def _rule(method: Method, found: Any) -> ReductionRule:
    """Return a rule whose parts are guarded too."""
    if isinstance(found, Reduce):
        return replace(
            found,
            filter=_scores(method, found.filter),
            correlate=None if found.correlate is None else _affinities(method, found.correlate),
        )
    _expect(callable(found), found)

    def call(at: SiteContext, keep: int) -> Outcome:
        with blamed(type(method), "the rule", "an Outcome of ONNX values"):
            return _outcome(method, at, keep, found(at, keep))

    return call


def _scores(method: Method, function: Callable[..., Any]) -> Callable[[SiteContext], ir.Value]:
    def call(at: SiteContext) -> ir.Value:
        with blamed(type(method), "filter()", _SCORES):
            return _filter(method, function(at), at)

    return call


def _affinities(method: Method, function: Callable[..., Any]) -> Callable[..., ir.Value]:
    def call(at: SiteContext, dropped: ir.Value, kept: ir.Value, keep: int) -> ir.Value:
        with blamed(type(method), "correlate()", "an ONNX value [B,n-K,K] float32"):
            found, shape = function(at, dropped, kept, keep), (at.batch, at.tokens - keep, keep)
            return _returned(method, "correlate()", found, shape, at)

    return call


def _outcome(method: Method, at: SiteContext, keep: int, found: Any) -> Outcome:
    _expect(isinstance(found, Outcome), found)
    kept, left = (at.batch, keep), at.tokens - keep
    _returned(method, "kept of its rule", found.kept, kept, at, _INT64)
    for name in ("sizes", "received"):
        if getattr(found, name) is not None:
            _returned(method, f"{name} of its rule", getattr(found, name), kept, at)
    if found.merge is not None:
        _returned(method, "weights of its rule", found.merge.weights, (*kept, left), at)
        _returned(method, "dropped of its rule", found.merge.dropped, (at.batch, left), at, _INT64)
    _expect(found.tokens is None or isinstance(found.tokens, ir.Value), found.tokens)
    return found  # type: ignore[no-any-return]  # compared above


def _filter(method: Method, found: Any, at: SiteContext) -> ir.Value:
    return _returned(method, "filter()", found, (at.batch, at.tokens), at)


def _count(method: Method, found: Any, at: SiteContext) -> ir.Value:
    return _returned(method, "count()", found, (at.batch,), at, _INT64)


def _returned(
    method: Method, what: str, found: Any, shape: Sequence[int], at: SiteContext, dtype: ir.DataType = _FLOAT
) -> ir.Value:
    _expect(isinstance(found, ir.Value), found)
    return expect_returned(found, shape, f"method '{method.name}', {what}", at, dtype)


def _counts(method: Method, found: Any, model: Facts, target: int) -> list[tuple[Site, int]]:
    _expect(isinstance(found, list | tuple) and len(found) > 0, found)
    for row in found:
        _expect(isinstance(row, tuple) and len(row) == 2 and isinstance(row[0], Site), row)
        bounded(row[1], f"the count at {row[0]}", 1, model.tokens)
    return list(found)


def _stages(method: Method, found: Any, model: Facts, target: int) -> tuple[Stage, ...]:
    _expect(isinstance(found, list | tuple) and all(isinstance(row, Stage) for row in found), found)
    rows = []
    for row in found:
        _expect(isinstance(row.site, Site), row.site)
        bounded(row.keep, f"the tokens kept at {row.site}", 1, model.tokens)
        bounded(row.prune_text, f"prune_text at {row.site}", 0, _MOST)
        rows.append(replace(row, rule=_rule(method, row.rule)))
    return tuple(rows)


def _plan(method: Method, found: Any, model: Facts, target: int) -> tuple[Stage, ...]:
    stages = _stages(method, found, model, target)
    if target < model.tokens and not stages:
        raise ValueError(f"nothing is removed, although {target} of {model.tokens} tokens were asked for")
    return stages


def _method(method: Method, found: Any) -> Method:
    _expect(isinstance(found, Method), found)
    guarded(type(found))
    return found  # type: ignore[no-any-return]  # just compared


def _nothing(method: Method, found: Any, model: Facts) -> None:
    _expect(found is None, found)


def _expect(held: bool, found: object) -> None:
    if not held:
        raise TypeError(f"it returned {shortened(found)}")


_SCORES = "an ONNX value [B,n] float32, a score of each visual token"
_HOOKS: dict[str, tuple[str, Callable[..., Any]]] = {
    "filter": (_SCORES, _filter),
    "count": ("an ONNX value [B] int64, the patches that stay of each picture", _count),
    "rule": ("a Reduce, or what is called like one", _rule),
    "rule_at_output": ("a Reduce, or what is called like one", _rule),
    "counts": ("a list of (Site, tokens that leave it), with an entry at least", _counts),
    "stages": ("a tuple of Stage", _stages),
    "plan": ("a tuple of Stage that removes tokens", _plan),
    "check": ("nothing, or an lmmprune.InputError that says what doesn't fit", _nothing),
    "at_output_only": ("a Method", _method),
}
