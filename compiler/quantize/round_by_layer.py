"""Round a decoder's weights to four bits on samples, layer by layer; each sees what the rounded ones before make."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from lmmprune.compiler.quantize.factorize import factorize
from lmmprune.compiler.quantize.gptq import round_weight
from lmmprune.compiler.quantize.gram import Gram
from lmmprune.compiler.quantize.layer_state import Values
from lmmprune.compiler.quantize.rounded import Rounded
from lmmprune.compiler.quantize.run_segment import run_segment
from lmmprune.compiler.quantize.segments import Segment, split
from lmmprune.lazy import array_of
from lmmprune.passes.find.anchors import find_decoder_anchors
from lmmprune.passes.int4.insert_int4 import groupable
from lmmprune.passes.int4.int4 import dequantize_groups
from lmmprune.stored import Array


def round_by_layer(
    model: ir.Model,
    samples: Sequence[Sequence[Values]],
    folder: Path,
    *,
    group: int,
    dtype: str,
    keep_float: frozenset[str],
    cache: Mapping[str, str],
    empty: tuple[int, ...],
    check: Callable[[], None] = lambda: None,
    done: Callable[[int, int], None] = lambda finished, of: None,
) -> dict[str, Rounded]:
    """Return every weight that can be rounded, by its name.

    In memory are one layer's weights, what the next layer reads of every sample, and what is known of a layer's
    activations: a square matrix for each. All samples pass a layer twice, before and after its weights are rounded.

    Args:
        model: The pruned float32 decoder, weights lazy; it stays as it is.
        samples: The inputs of each sample's steps, without the cache (see ``SampleFeeds.script``); changed.
        folder: Where weights are kept; it is there.
        group: Inputs that share a scale.
        dtype: Floating-point type that scales must fit into.
        keep_float: Names of blocks that stay as they are.
        cache: (key, value) of every layer: the inputs, and the outputs that the next step is fed with.
        empty: Shape of an empty cache, ``[B,Hk,0,D]``.
        check: Called when the weights of a layer have been read.
        done: Called with finished and all layers.
    """
    anchors = find_decoder_anchors(model)
    segments = split(model, [str(anchors.embeds.name), *(str(layer.out.name) for layer in anchors.layers)])
    readers: dict[str, list[ir.Node]] = defaultdict(list)
    for node in groupable(model, keep_float=keep_float):
        readers[node.inputs[1].name].append(node)  # type: ignore[union-attr, index]  # groupable() checked it
    found: dict[str, Rounded] = {}
    done(0, len(segments))
    for index, segment in enumerate(segments):
        # A weight that several segments read is rounded for the first one.
        own = {
            name: here
            for name, nodes in readers.items()
            if name not in found and (here := [node for node in nodes if str(node.outputs[0].name) in segment.made])
        }
        weights = {name: array_of(value) for name, value in segment.weights.items()}
        check()
        if own:
            grams = _look(segment, samples, weights, own, cache, empty)
            for names, factor in factors_of(own, grams):
                for name in names:
                    integers, scales = round_weight(weights[name], factor, group=group, dtype=dtype)
                    weights[name] = dequantize_groups(integers, scales, group)
                    found[name] = Rounded.keep(folder / str(len(found)), integers, scales)
                    del integers, scales
                del factor
        if index + 1 < len(segments):
            run_segment(segment, samples, weights, cache=cache, empty=empty, values=(), take=_nothing)
        del weights  # before the next layer's are read
        done(index + 1, len(segments))
    return found


def factors_of(
    readers: Mapping[str, Sequence[ir.Node]], grams: dict[str, Gram]
) -> Iterator[tuple[Sequence[str], Array]]:
    """Yield weights that read the same activations, and the factor for them.

    Args:
        readers: The nodes that read each weight.
        grams: What is known of each activation; used up, so that one of gigabytes isn't copied.
    """
    reads: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, nodes in readers.items():
        reads[tuple(str(node.inputs[0].name) for node in nodes)].append(name)  # type: ignore[union-attr]  # groupable() checked it
    waiting = Counter(name for names in reads for name in names)
    for activations, weights in reads.items():
        waiting.subtract(activations)
        first, *others = activations
        seen = grams[first].matrix()
        if others or waiting[first]:
            seen = sum((grams[name].matrix() for name in others), seen.copy())
        for name in activations:
            if not waiting[name]:
                grams.pop(name, None)
        yield weights, factorize(seen)


def _look(
    segment: Segment,
    samples: Sequence[Sequence[Values]],
    weights: Mapping[str, Array],
    readers: Mapping[str, Sequence[ir.Node]],
    cache: Mapping[str, str],
    empty: tuple[int, ...],
) -> dict[str, Gram]:
    """Return the sum of x x^T of every activation that a weight of the segment reads."""
    names = list(dict.fromkeys(str(node.inputs[0].name) for nodes in readers.values() for node in nodes))  # type: ignore[union-attr]  # same
    grams = {name: Gram() for name in names}
    run_segment(
        segment,
        samples,
        weights,
        cache=cache,
        empty=empty,
        values=names,
        take=lambda name, array: grams[name].update(array),
        keep=False,
    )
    return grams


def _nothing(name: str, value: Array) -> None:
    """Look at no value."""
