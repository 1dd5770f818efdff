"""What pruning saves, before and after, as plain data: of a model by formula, of a bundle by its manifest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.flops.formula import TEXT_TOKENS, layer_flops, prefill, uniform
from lmmprune.errors import GraphRefusal, MissingExtraError, require

CONVENTION = "1 multiply-accumulate = 2 FLOPs; decoder layers only, without vision tower, projector and lm_head"


def model_report(
    model: str,
    *,
    ratio: float | None = None,
    keep: int | None = None,
    text_tokens: int = TEXT_TOKENS,
    method: str | None = None,
    options: dict[str, str] | None = None,
    schedule: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Return the cost of a model's prefill with all visual tokens and with those that stay, by formula.

    Args:
        model: Alias, hub id or local directory; only its configuration is read.
        ratio: Fraction of visual tokens removed, in ``[0, 1)``.
        keep: Count that stays, instead of ``ratio``.
        text_tokens: Text tokens beside the visual ones.
        method: Whose schedule to follow; None: all that goes is gone before the decoder.
        options: The method's hyper-parameters as text.
        schedule: Site -> tokens that leave it, instead of ``ratio`` and ``keep``.

    Returns:
        ``visual_tokens`` (per decoder layer, on average), ``prefill_flops``, ``kv_bytes`` (half precision), each with
        ``before`` and ``after``; their ``ratio``; the method's ``sites``; and ``layers`` with the same per layer.

    Raises:
        LmmpruneError: An unknown model, or a ratio or count outside its range.
    """
    from lmmprune.models.source import resolve

    source = resolve(model, weights="dummy")
    # Only now: without the packages of the extra, resolve says what to install.
    from lmmprune.models.facts import facts_of
    from lmmprune.passes.find.sites import parse_site
    from lmmprune.passes.methods import get_method, keep_count
    from lmmprune.passes.reduce.schedule import average, cached_tokens, layer_tokens

    spec, tokens = source.decoder, source.vision.tokens
    facts = facts_of(source)
    chosen = get_method(method or "uniform", options)
    if schedule is None:
        plan = chosen.plan(facts, keep_count(tokens, ratio=ratio, keep=keep))
    else:
        plan = chosen.plan_schedule(facts, [(parse_site(site), count) for site, count in schedule.items()])
    counts = [(stage.site, stage.keep) for stage in plan]
    visual = {"before": tokens, "after": average(counts, facts)}
    handed_on, attending = (
        [count + text_tokens for count in found(counts, tokens=tokens, layers=spec.layers)]
        for found in (layer_tokens, cached_tokens)
    )
    scoring = {}
    if chosen.scores_ahead:
        inside = [site.layer for site, _ in counts if site.kind == "llm_input"]
        scoring = {layer: handed_on[layer - 1] for layer in inside}
    costs = {
        "before": prefill(spec, uniform(spec, tokens + text_tokens)),
        "after": prefill(spec, handed_on, attending, scoring),
    }
    flops = {side: cost.flops for side, cost in costs.items()}
    return {
        "model": model,
        "method": method,
        "convention": CONVENTION,
        "sites": [{"site": str(site), "tokens_out": keep} for site, keep in counts] if method else [],
        "text_tokens": text_tokens,
        "visual_tokens": visual,
        "prefill_flops": flops,
        "ratio": flops["after"] / flops["before"],
        "kv_bytes": {side: cost.kv_bytes for side, cost in costs.items()},
        "layers": [
            {
                "tokens": {side: cost.tokens_per_layer[layer] for side, cost in costs.items()},
                "flops": {side: cost.flops_per_layer[layer] for side, cost in costs.items()},
            }
            for layer in range(spec.layers)
        ],
    }


def traced_report(model: str, layers: int, tokens: dict[str, int]) -> list[dict[str, Any]]:
    """Trace some of a model's decoder layers and return what each costs in the graph and by formula.

    Args:
        model: As for ``model_report``.
        layers: Decoder layers to trace.
        tokens: Tokens that a layer sees, visual and text, ``before`` and ``after``.

    Returns:
        Per layer ``flops``, ``formula`` and ``ratio`` (graph to formula), each with ``before`` and ``after``.
    """
    from lmmprune.models.source import resolve

    source = resolve(model, weights="dummy", layers=layers)
    from lmmprune.compiler.flops.graph import count_layers, trace_decoder_layers

    decoder = trace_decoder_layers(source)
    counted = {side: count_layers(decoder, count).per_layer for side, count in tokens.items()}
    formula = {side: layer_flops(source.decoder, count) for side, count in tokens.items()}
    rows = []
    for layer in range(layers):
        flops = {side: counted[side][layer] for side in tokens}
        ratio = {side: flops[side] / formula[side] for side in tokens}
        rows.append({"layer": layer, "flops": flops, "formula": formula, "ratio": ratio})
    return rows


def bundle_report(path: Path) -> dict[str, Any]:
    """Return what a bundle's manifest says of its cost, and what its graphs say where the ``export`` extra is there.

    Returns:
        ``sites``; ``flops`` of ``vision`` and ``prefill`` (with ``lm_head`` at one position) and ``kv_bytes`` in the
        bundle's own precision, with ``before`` and ``after``; ``counted``, the FLOPs in the files as they are, or None
        and the reason in ``not_counted``.

    Raises:
        BundleError: It isn't a bundle.
    """
    bundle = Bundle.open(path)
    manifest, cache = bundle.manifest, bundle.manifest.cache
    kinds = {tensor.name: tensor.dtype for tensor in manifest.decoder.inputs}
    kind = kinds[cache.past[0][0]]
    # Without cuts inside the decoder every layer would hold what enters it.
    unpruned = dataclasses.replace(cache, length_offsets=(0,) * len(cache.length_offsets))
    before = dataclasses.replace(manifest, cache=unpruned).cache_bytes(
        manifest.vision_runs * manifest.tokens_before + TEXT_TOKENS
    )
    counted, reason = _count(bundle)
    return {
        "bundle": str(path),
        "model": manifest.model,
        "method": manifest.method,
        "text_tokens": TEXT_TOKENS,
        "sites": [{"site": s.site, "tokens_in": s.tokens_in, "tokens_out": s.tokens_out} for s in manifest.schedule],
        "flops": {part: dict(row) for part, row in manifest.flops.items()},
        "kv_dtype": kind,
        "images": manifest.images,
        "kv_bytes": {"before": before, "after": manifest.cache_bytes(manifest.feature_rows + TEXT_TOKENS)},
        "counted": counted,
        "not_counted": reason,
    }


def _count(bundle: Bundle) -> tuple[dict[str, int] | None, str | None]:
    """Return the FLOPs in the files, or why they can't be counted: the manifest's figures stand without them."""
    try:
        require("onnx_ir", "export")
        from lmmprune.compiler.flops.graph import count_bundle

        return count_bundle(bundle, TEXT_TOKENS), None
    except (MissingExtraError, GraphRefusal) as error:
        return None, str(error)
