"""Find the blocks that integers hurt most: quantize one at a time, compare the outputs, keep the worst in float."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from lmmprune.compiler.onnx_files.load_onnx import load_onnx
from lmmprune.compiler.quantize.observe import load_beside
from lmmprune.compiler.runtime.decode_steps import Feeds, Outputs, Steps, drive
from lmmprune.names import IMAGE_FEATURES, KEPT, LOGITS
from lmmprune.passes.find.blocks import find_blocks
from lmmprune.passes.int8.insert_qdq import InsertQdq, quantizable
from lmmprune.passes.int8.int8 import Range
from lmmprune.stored import Array

Samples = Sequence[Callable[[], Steps]]

# What the next stage reads; caches and kept places are on the way to these.
_ANSWERS = (IMAGE_FEATURES, LOGITS)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one run of a graph answers.

    Attributes:
        values: float64: the image features ``[B,K,C]`` of an encoder, the last position's logits of a decoder.
        places: int64 ``[B,K]``, which tokens an encoder kept; None where every token is there.
    """

    values: Array
    places: Array | None


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What a scan found.

    Attributes:
        errors: Block -> relative error of the output when it alone is quantized, the worst first.
        keep_float: Blocks that stay in floating point, the worst first.
        everything: Relative error with every block quantized.
        error: Relative error with ``keep_float`` left out.
    """

    errors: Mapping[str, float]
    keep_float: tuple[str, ...]
    everything: float
    error: float


def scan(
    graph: Path,
    scheme: str,
    ranges: Mapping[str, Range],
    samples: Samples,
    *,
    budget: float,
    done: Callable[[int, int], None] = lambda finished, of: None,
) -> Sensitivity:
    """Do what ``scan_blocks`` does for INT8.

    Args:
        graph: ONNX file of the float32 graph; its external data stays where it is.
        scheme: Name in ``SCHEMES``.
        ranges: Of its activations.
        samples: Start the runs of one sample each.
        budget: Relative error that is allowed.
        done: Called with the finished and all steps.
    """

    def quantize(model: ir.Model, keep: frozenset[str]) -> None:
        InsertQdq(scheme=scheme, ranges=ranges, keep_float=keep)(model)

    return scan_blocks(graph, lambda model: quantizable(model, scheme), quantize, samples, budget=budget, done=done)


def scan_blocks(
    graph: Path,
    find: Callable[[ir.Model], Sequence[ir.Node]],
    quantize: Callable[[ir.Model, frozenset[str]], None],
    samples: Samples,
    *,
    budget: float,
    done: Callable[[int, int], None] = lambda finished, of: None,
) -> Sensitivity:
    """Rank the blocks of a graph by what quantizing them costs, and keep as few in float as the budget allows.

    The error is the root of the summed squares of the difference over those of the output (image features or logits),
    over all samples and steps; the decoder's own quantized cache goes from step to step. Where tokens are selected,
    those that both graphs keep are compared: a near-tie that goes the other way is no error of a block. Blocks are kept
    in the order of their rank, as many as it takes; how many is found by bisection.

    Args:
        graph: ONNX file of the float32 graph; its external data stays where it is.
        find: Returns the nodes that can be quantized.
        quantize: Quantizes a copy of the graph, but for the blocks of these names.
        samples: Start the runs of one sample each.
        budget: Relative error that is allowed.
        done: Called with the finished and all steps.
    """
    model = load_onnx(graph)
    kinds = find_blocks(model)
    blocks = list(dict.fromkeys(kinds[node].name for node in find(model)))
    # Ranking, everything quantized, and the bisection.
    steps = len(blocks) + 1 + max(len(blocks), 1).bit_length()
    finished = 0
    exact = answers_of(load_beside(graph, model), samples)

    def error(keep: frozenset[str]) -> float:
        nonlocal finished
        quantized = model.clone()
        quantize(quantized, keep)
        found = answers_of(load_beside(graph, quantized), samples)
        finished += 1
        done(finished, steps)
        return relative_error(found, exact)

    together = frozenset(blocks)
    errors = {block: error(together - {block}) for block in blocks}
    ranked = sorted(errors, key=lambda block: -errors[block])
    everything = error(frozenset())
    few, many, best = 0, len(ranked), everything
    if everything <= budget:
        many = 0
    else:
        best = 0.0
        while few + 1 < many:
            middle = (few + many) // 2
            now = error(frozenset(ranked[:middle]))
            if now <= budget:
                many, best = middle, now
            else:
                few = middle
    done(steps, steps)
    return Sensitivity(
        errors={block: errors[block] for block in ranked},
        keep_float=tuple(ranked[:many]),
        everything=everything,
        error=best,
    )


def answers_of(session: Any, samples: Samples) -> list[Answer]:
    """Return the output of every run of every sample.

    A decoder's own cache goes from step to step.

    Args:
        session: ONNX Runtime session of an encoder or a decoder.
        samples: Start the runs of one sample each.
    """
    names = [output.name for output in session.get_outputs()]
    answers: list[Answer] = []

    def run(feeds: Feeds) -> Outputs:
        found = dict(zip(names, session.run(names, dict(feeds)), strict=True))
        places = found.get(KEPT) if IMAGE_FEATURES in found else None
        answers.extend(
            Answer(values=found[name].astype(np.float64), places=places) for name in _ANSWERS if name in found
        )
        return found

    for sample in samples:
        drive(sample(), run)
    return answers


def relative_error(found: Sequence[Answer], exact: Sequence[Answer]) -> float:
    """Return the root of the summed squares of the difference over those of the exact answers, over all runs.

    Where tokens are selected, those that both kept are compared. If the exact answers are all zero, it is 0 or 1.

    Args:
        found: Of the graph in question.
        exact: Of the one it should equal, run by run.
    """
    difference = total = 0.0
    for a, b in zip(found, exact, strict=True):
        ours, theirs = a.values, b.values
        if a.places is not None and b.places is not None:
            ours, theirs = (
                np.concatenate([v[i][np.isin(p[i], q[i])] for i in range(len(v))])
                for v, p, q in ((ours, a.places, b.places), (theirs, b.places, a.places))
            )
        difference += float(np.square(ours - theirs).sum())
        total += float(np.square(theirs).sum())
    return float(np.sqrt(difference / total)) if total else float(difference > 0)
