"""Run one segment of a graph on every step of every sample, and look at some of its values on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from lmmprune.compiler.backends.cpu_session import cpu_session
from lmmprune.compiler.quantize.layer_state import Values
from lmmprune.compiler.quantize.observe import add_outputs, add_reductions, ends_of
from lmmprune.compiler.quantize.segments import Segment
from lmmprune.errors import require
from lmmprune.stored import Array


def run_segment(
    segment: Segment,
    samples: Sequence[Sequence[Values]],
    weights: Mapping[str, Array],
    *,
    cache: Mapping[str, str],
    empty: tuple[int, ...],
    values: Sequence[str],
    take: Callable[[str, Array], None],
    ends: Sequence[str] = (),
    take_ends: Callable[[str, float, float], None] = lambda name, low, high: None,
    keep: bool = True,
) -> None:
    """Run every step of every sample.

    Args:
        segment: What is run.
        samples: Of each sample its steps: what they read.
        weights: The segment's.
        cache: (key, value) of every layer: the inputs, and the outputs that the next step is fed with.
        empty: Shape of an empty cache, ``[B,Hk,0,D]``.
        values: What is looked at.
        take: Called with name and value.
        ends: Values of which only the ends are wanted, which the graph itself finds.
        take_ends: Called with name, minimum and maximum.
        keep: Whether what later segments read is put into ``samples``, in place of what none reads any more.
    """
    model = segment.model.clone()
    add_outputs(model, values)
    add_reductions(model, ends)
    session = _session(model)
    names = [output.name for output in session.get_outputs()]
    wanted = set(values)
    for steps in samples:
        held = {name: np.zeros(empty, np.float32) for name in segment.inputs if name in cache}
        for step in steps:
            feeds = {name: step[name] for name in segment.inputs if name not in cache} | held
            found = dict(zip(names, session.run(names, {**feeds, **weights}), strict=True)) if names else {}
            for name in wanted:
                take(name, feeds[name] if name in feeds else found[name])
            for name in ends:
                take_ends(name, *ends_of(found, name))
            held = {name: found[cache[name]] for name in held}
            if keep:
                step.update({name: found[name] for name in segment.outputs if name not in cache.values()})
                for name in segment.done_with:
                    step.pop(name, None)


def _session(model: ir.Model) -> Any:
    return cpu_session(ir.to_proto(model).SerializeToString(), providers=providers(require("onnxruntime", "export")))


def providers(ort: Any) -> list[str]:
    """Return CUDA's where onnxruntime-gpu is installed, which shortens the job, and the CPU's."""
    available = ort.get_available_providers()
    return [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
