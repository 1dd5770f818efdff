"""Watch all activations of a bundle on samples, as they are and smoothed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.quantize.channels import observe_channels
from lmmprune.compiler.quantize.feeds import SampleFeeds
from lmmprune.compiler.quantize.histogram import Histogram
from lmmprune.compiler.quantize.observe import watch_values
from lmmprune.compiler.quantize.smooth import search
from lmmprune.compiler.runtime.decode_steps import drive
from lmmprune.passes.int8.int8 import SCHEMES
from lmmprune.passes.int8.smooth_quant import SmoothQuant, find_smoothable
from token_ranges.labels import NO_FIRST, SCHEME, labels
from token_ranges.watched import Watched, row


def measure(bundle: Bundle, work: Path, data: Any) -> dict[str, Any]:
    """Return part -> plain or smoothed -> label -> row."""
    feeds = SampleFeeds(bundle.manifest, bundle.path, data, bundle.vision)
    parts: dict[str, Any] = {}
    before = bundle.manifest.prefix
    visual = range(before, before + bundle.manifest.image_tokens)
    for part, graph, samples, places in (
        ("vision", bundle.vision, feeds.vision(), None),
        ("decoder", bundle.decoder, feeds.decoder(), visual),
    ):
        model = ir.load(graph)
        names = labels(model)
        plain = watch(graph, names, samples, visual=places)
        groups = find_smoothable(model)
        stats = observe_channels(graph, [str(group.value.name) for group in groups], samples)
        found = {
            name: s.factors
            for name, s in search(groups, stats, symmetric=SCHEMES[SCHEME].symmetric).items()
            if s.factors is not None
        }
        SmoothQuant(factors=found)(model)
        smooth = work / f"{part}.smooth.onnx"
        ir.save(model, smooth, external_data=f"{smooth.name}.data")
        parts[part] = {
            "plain": plain,
            "smoothed": watch(smooth, names, samples, visual=places),
            "smoothed_blocks": [names[name] for name in found],
        }
    return parts


def watch(graph: Path, names: Mapping[str, str], samples: Any, *, visual: range | None) -> dict[str, dict[str, Any]]:
    """Run a graph on samples and return a row per activation, by label.

    Args:
        graph: ONNX file.
        names: Activation -> label.
        samples: Start the runs of one sample each.
        visual: Places of the visual tokens in the decoder's prefill; None for the encoder.
    """
    watched = {name: Watched(seen=Histogram(name=name)) for name in names}
    prefill = True

    def take(name: str, values: Any) -> None:
        first = prefill and not names[name].startswith(NO_FIRST)
        watched[name].update(values, first=first, prefill=prefill)

    look = watch_values(graph, list(names), take)

    def run(feeds: Any) -> Any:
        nonlocal prefill
        prefill = visual is None or feeds["input_ids"].shape[1] > 1
        return look(feeds)

    for sample in samples:
        drive(sample(), run)
    return {names[name]: row(found, visual) for name, found in watched.items()}
