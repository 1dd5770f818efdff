"""INT8 for further graphs with the weights of one that is quantized: of other sizes of pictures, of other counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from lmmprune.compiler.onnx_files.bucket_graphs import bucket_name
from lmmprune.compiler.quantize.int8_plan import Int8Plan
from lmmprune.compiler.quantize.quantize_whole import Done, Tools, quantize_whole, readers_of, write_to_run
from lmmprune.compiler.quantize.sensitivity import Samples
from lmmprune.errors import ModelError
from lmmprune.lazy import is_lazy
from lmmprune.passes.find.blocks import find_blocks
from lmmprune.passes.int8.insert_qdq import InsertQdq
from lmmprune.passes.int8.smooth_quant import SmoothQuant, find_smoothable

_BUCKET = bucket_name("")


def quantize_others(models: Mapping[str, ir.Model], samples: Mapping[str, Samples], done: Done, tools: Tools) -> None:
    """Quantize graphs in place so that their weights become the same integers; ranges of activations are their own.

    Args:
        models: Component -> pruned float32 graph.
        samples: Component -> its runs.
        done: What was done to the first one.
        tools: How.

    Raises:
        ModelError: A graph has other activations to smooth than the first: its weights would differ.
    """
    for component, model in models.items():
        factors = {}
        if done.smoothed:
            groups = find_smoothable(model)
            if [readers_of(group) for group in groups] != [readers for readers, _ in done.smoothed]:
                raise ModelError(
                    f"the {component} graph has other activations to smooth than '{done.graph.stem}', and shares its"
                    " weights: export with --no-smooth"
                )
            pairs = zip(groups, done.smoothed, strict=True)
            factors = {str(group.value.name): row.factors for group, (_, row) in pairs if row.factors is not None}
        SmoothQuant(factors=factors)(model)
        graph = write_beside(model, done.graph.with_name(f"{component}.whole.onnx"), done.graph)
        ranges = tools.ranges(component, model, graph, samples[component])
        InsertQdq(scheme=tools.plan.scheme, ranges=ranges, dtype=tools.dtype, keep_float=done.keep_float)(model)


def write_counts(buckets: Mapping[int, ir.Model], work: Path) -> dict[int, Path]:
    """Write the graphs of several token counts to be run and thrown away, their weights once."""
    files: dict[int, Path] = {}
    for count, model in sorted(buckets.items(), reverse=True):
        file = work / f"{bucket_name(count)}.onnx"
        files[count] = write_beside(model, file, files[max(files)]) if files else write_to_run(model, file)
    return files


def quantize_counts(
    buckets: Mapping[int, ir.Model], files: Mapping[int, Path], samples: Samples, keep: frozenset[str], tools: Tools
) -> dict[str, Any]:
    """Quantize the graphs of several token counts in place, the largest first.

    Returns:
        What the manifest says of it, beside what it says of the graph that they stand behind.
    """
    if not buckets:
        return {}
    largest = max(buckets)
    record, done = quantize_whole(_BUCKET, buckets[largest], files[largest], samples, keep, tools)
    others = {bucket_name(count): model for count, model in buckets.items() if count != largest}
    quantize_others(others, dict.fromkeys(others, samples), done, tools)
    return {_BUCKET: record}


def kept_in_each(
    plan: Int8Plan, parts: Mapping[str, ir.Model], buckets: Mapping[int, ir.Model]
) -> Callable[[str], frozenset[str]]:
    """Return what tells for each component the blocks that the user wants in float.

    A vision graph of several counts is cut in two: a block belongs to the side that has it, and to the encoder if none
    does, which says so.
    """
    behind: set[str] = set()
    if buckets:
        behind = {block.name for block in find_blocks(buckets[max(buckets)]).values()}
        behind -= {block.name for block in find_blocks(parts["vision"]).values()}

    def keep(component: str) -> frozenset[str]:
        if component.startswith(_BUCKET):
            return plan.kept("vision") & behind
        return plan.kept("decoder") if component == "decoder" else plan.kept("vision") - behind

    return keep


def write_beside(model: ir.Model, path: Path, lender: Path) -> Path:
    """Write a graph to be run and thrown away, whose weights lie where another one's do; return the file."""
    copy, stored = model.clone(), ir.load(lender).graph.initializers
    for name, value in copy.graph.initializers.items():
        theirs = stored.get(name)
        if theirs is None or not is_lazy(value) or not isinstance(theirs.const_value, ir.ExternalTensor):
            continue
        if (theirs.dtype, theirs.shape) == (value.dtype, value.shape):
            value.const_value = theirs.const_value
    ir.save(copy, path)
    return path
