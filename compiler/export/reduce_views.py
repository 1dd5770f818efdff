"""Remove visual tokens in the vision graphs of further sizes, and let these share the largest one's weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from lmmprune.compiler.bundle.interface import SELECTION
from lmmprune.compiler.export.views import ViewPlan
from lmmprune.lazy import is_lazy
from lmmprune.passes.lower.freeze_shapes import FreezeShapes
from lmmprune.passes.reduce.reduce_vision import ReduceVision


def reduce_views(plans: Mapping[str, ViewPlan], graphs: Mapping[str, ir.Model], method: str) -> None:
    """Cut tokens as each plan says.

    Args:
        plans: Component -> what is going to be done, of all sizes but the largest.
        graphs: Component -> its traced vision graph, float32; changed in place.
        method: The method's name.
    """
    for component, model in graphs.items():
        plan = plans[component]
        ReduceVision(
            method=method,
            stages=plan.stages,
            grid=plan.facts.grid,
            tiles=plan.facts.tiles,
            separators=plan.facts.separators,
        )(model)
        FreezeShapes()(model)
        name_constants(model, component)


def select_in_views(
    plans: Mapping[str, ViewPlan], decoder: ir.Model, select: Callable[[ViewPlan, ir.Model], ir.Model | None]
) -> dict[str, ir.Model]:
    """Return component -> what chooses among a size's features in front of the decoder, where a plan asks for that.

    Args:
        plans: Component of its vision graph -> what is going to be done, of all sizes but the largest.
        decoder: Unpruned; stays as it is.
        select: Makes the graph.
    """
    found = {}
    for vision, plan in plans.items():
        if (graph := select(plan, decoder)) is not None:
            component = vision.replace("vision", SELECTION)
            name_constants(graph, component)
            found[component] = graph
    return found


def name_constants(model: ir.Model, component: str) -> None:
    """Give a graph's constants names of its own; those of weights stay.

    Weights of the same name are stored once for all sizes. Constants depend on the size (rotary angles, places in
    windows), and what later passes make of them is named after them.
    """
    for value in list(model.graph.initializers.values()):
        if not is_lazy(value):
            value.name = f"{component}/{value.name}"
