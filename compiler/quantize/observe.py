"""Run a graph on samples and look at some of its values on the way; only those of the current run are in memory."""

from __future__ import annotations

import functools
import math
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from lmmprune.compiler.backends.cpu_session import cpu_session
from lmmprune.compiler.onnx_files.load_onnx import load_onnx
from lmmprune.compiler.runtime.decode_steps import Feeds, Outputs
from lmmprune.stored import Array

Run = Callable[[Feeds], Outputs]

FETCHED_BYTES = 2**30
"""Watched values that one session may hold at once."""


def watch_extremes(graph: Path, names: Sequence[str], take: Callable[[str, float, float], None]) -> Run:
    """Return a function that runs a graph and hands over the ends of every watched value.

    The graph itself reduces the values, so none of them is fetched. ONNX Runtime's ReduceMin and ReduceMax pass over
    NaN (1.31 does), so the graph also adds up x - x, which is 0 or NaN.

    Args:
        graph: ONNX file; its external data stays where it is.
        names: Values to watch.
        take: Called with name, minimum and maximum; NaN and NaN where the value holds NaN or infinity.
    """
    session = _session(graph, functools.partial(add_reductions, names=names))
    outputs = [output.name for output in session.get_outputs()]

    def run(feeds: Feeds) -> Outputs:
        found = dict(zip(outputs, session.run(outputs, dict(feeds)), strict=True))
        for name in names:
            take(name, *ends_of(found, name))
        return found

    return run


def watch_values(
    graph: Path, names: Sequence[str], take: Callable[[str, Array], None], *, limit: int = FETCHED_BYTES
) -> Run:
    """Return a function that runs a graph and hands over every watched value.

    ONNX Runtime keeps all outputs of a graph until a run's end, fetched or not. If together they would be too large
    for one session, several sessions each run a copy of the graph with some of them. How large they are is judged by
    the first inputs; a symbol that these don't bind counts as the largest one that they do.

    Args:
        graph: ONNX file; its external data stays where it is.
        names: Values to watch.
        take: Called with name and values, in the order of ``names``.
        limit: Bytes of watched values that a session may hold; a single value may be larger.
    """
    sessions: list[tuple[Any, list[str]]] = []
    own: list[str] = []

    def load(feeds: Feeds) -> None:
        model = load_onnx(graph)
        own.extend(str(output.name) for output in model.graph.outputs)
        groups = _groups(model, names, feeds, limit)
        for group in groups:
            change = functools.partial(add_outputs, names=group)
            sessions.append((_session(graph, change, shared=len(groups) > 1), group))

    def run(feeds: Feeds) -> Outputs:
        if not sessions:
            load(feeds)
        result: Outputs = {}
        for session, group in sessions:
            outputs = list(dict.fromkeys([*([] if result else own), *(name for name in group if name not in feeds)]))
            # To be asked for no output means all of them to ONNX Runtime.
            found = dict(zip(outputs, session.run(outputs, dict(feeds)), strict=True)) if outputs else {}
            for name in group:
                take(name, feeds[name] if name in feeds else found[name])
            result = result or {name: found[name] for name in own}
        return result

    return run


def _session(graph: Path, change: Callable[[ir.Model], None], *, shared: bool = False) -> Any:
    model = load_onnx(graph)
    change(model)
    return load_beside(graph, model, shared=shared)


def load_beside(graph: Path, model: ir.Model, *, shared: bool = False) -> Any:
    """Load a changed copy of a graph, which lies beside it for a moment: the external data is found from there.

    Args:
        graph: The file that the copy was made from.
        model: The copy.
        shared: Whether several sessions read the same weights.
    """
    # Several sessions on one file: its pages are in memory once, unless each makes its own packed copy.
    entries = {"session.disable_prepacking": "1"} if shared else {}
    copy = graph.with_name(f"{graph.stem}.{secrets.token_hex(4)}.copy.onnx")
    try:
        ir.save(model, copy)
        return cpu_session(copy, entries=entries)
    finally:
        copy.unlink(missing_ok=True)


def _values(model: ir.Model) -> dict[str, ir.Value]:
    inner = [output for node in model.graph for output in node.outputs]
    return {str(value.name): value for value in (*model.graph.inputs, *inner)}


def ends_of(found: dict[str, Array], name: str) -> tuple[float, float]:
    """Take what ``add_reductions`` added out of a run's outputs; NaN and NaN stands for a value that isn't finite."""
    low, high, check = (float(found.pop(f"{name}/{part}")) for part in ("min", "max", "finite"))
    return low + check, high + check


def add_reductions(model: ir.Model, names: Sequence[str]) -> None:
    """Let a graph find the ends of some values, as outputs."""
    values = _values(model)
    for name in names:
        difference = ir.node("Sub", [values[name], values[name]], name=f"{name}/zero")
        difference.outputs[0].name = f"{name}/zero"
        model.graph.append(difference)
        for op, part, value in (
            ("ReduceMin", "min", values[name]),
            ("ReduceMax", "max", values[name]),
            ("ReduceSum", "finite", difference.outputs[0]),
        ):
            node = ir.node(op, [value], {"keepdims": 0}, name=f"{name}/{part}")
            output = node.outputs[0]
            output.name, output.shape, output.type = node.name, ir.Shape([]), values[name].type
            model.graph.append(node)
            model.graph.outputs.append(output)


def add_outputs(model: ir.Model, names: Sequence[str]) -> None:
    """Make some values of a graph outputs, but for its inputs, which the caller has."""
    values = _values(model)
    there = {output.name for output in model.graph.outputs}
    for name in names:
        if name not in there and not values[name].is_graph_input():
            model.graph.outputs.append(values[name])


def _groups(model: ir.Model, names: Sequence[str], feeds: Feeds, limit: int) -> list[list[str]]:
    """Cut the names into runs of neighbours whose values together stay below a number of bytes."""
    values = _values(model)
    sizes: dict[str | None, int] = {}
    for value in model.graph.inputs:
        for dim, size in zip(value.shape or (), feeds[str(value.name)].shape, strict=True):
            if isinstance(dim, ir.SymbolicDim):
                sizes[dim.value] = size
    largest = max(sizes.values(), default=1)
    groups: list[list[str]] = [[]]
    room = limit
    for name in names:
        shape = values[name].shape or ()
        dims = [sizes.get(dim.value, largest) if isinstance(dim, ir.SymbolicDim) else dim for dim in shape]
        needed = 4 * math.prod(dims)
        if needed > room and groups[-1]:
            groups.append([])
            room = limit
        groups[-1].append(name)
        room -= needed
    return groups
