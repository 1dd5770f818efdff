"""Prefill of LLaVA-7B-wide decoder layers: baseline, pruned, int8, both, and transformers, interleaved on this CPU.

    python scripts/bench_llava7b_layers.py --layers 2 --ratio 0.5 -o docs/llava7b_layers

Synthetic weights at the real widths (4096/11008): times depend on shapes, not on values. The decoder's prefill is
what is timed, 576 + 60 tokens before pruning; the vision tower is the same for all variants but for the selection.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from lmmprune.compiler import machine
from lmmprune.compiler.backends.onnxruntime import OrtSession
from lmmprune.compiler.bundle import Bundle
from lmmprune.compiler.export import TEXT_TOKENS, Request, export

MODEL = "llava-1.5-7b"


def variant(folder: Path, name: str, ratio: float, int8: bool, layers: int) -> Bundle:
    """Export a variant unless it is there."""
    path = folder / name
    if not path.is_dir():
        click.echo(f"export {name}", err=True)
        request = Request(
            model=MODEL, output=path, ratio=ratio, int8=int8, weights="dummy", layers=layers, calibration_samples=2
        )
        export(request)
    return Bundle.open(path)


def prefill(bundle: Bundle, threads: int) -> Callable[[], None]:
    """Return a function that runs one prefill of K + 60 tokens."""
    manifest = bundle.manifest
    session = OrtSession(bundle.decoder, threads=threads)
    length = manifest.image_tokens + TEXT_TOKENS
    ids = np.full((1, length), 7, np.int64)
    ids[0, 5 : 5 + manifest.image_tokens] = manifest.prompt.image_token_id
    shapes = {tensor.name: tensor for tensor in manifest.decoder.inputs}
    features = np.random.default_rng(0).standard_normal(shapes["image_features"].shape).astype(np.float32)  # type: ignore[arg-type]  # static after freezing
    empty = np.zeros((1, manifest.cache.kv_heads, 0, manifest.cache.head_dim), np.float32)
    feeds = {"input_ids": ids, "position_ids": np.arange(length, dtype=np.int64)[None], "image_features": features}
    values = {name: session.upload(array) for name, array in feeds.items()}
    values |= {name: session.upload(empty) for pair in manifest.cache.past for name in pair}
    return lambda: void(session.run(values))


def transformers_prefill(layers: int, tokens: int, threads: int) -> Callable[[], None]:
    """Return the same prefill in transformers: Llama with sdpa, float32, and the logits of the last position."""
    import torch
    from transformers import LlamaForCausalLM

    from lmmprune.models.source import resolve

    torch.set_num_threads(threads)
    config = resolve(MODEL, weights="dummy", layers=layers).config.text_config
    model: Any = LlamaForCausalLM(config).eval()
    embeds = torch.randn(1, tokens + TEXT_TOKENS, config.hidden_size)

    def once() -> None:
        with torch.no_grad():
            model(inputs_embeds=embeds, use_cache=True, logits_to_keep=1)

    return once


def void(_: object) -> None:
    """Drop a result."""


def interleaved(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Time every variant once per round, after a round of warm-up; milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(-1, rounds):
        for name, once in runs.items():
            start = time.perf_counter()
            once()
            if number >= 0:
                times[name].append((time.perf_counter() - start) * 1e3)
    return times


def vision(bundle: Bundle, threads: int) -> Callable[[], None]:
    """Return a function that runs the vision tower with its selection."""
    session = OrtSession(bundle.vision, threads=threads)
    pixels = np.random.default_rng(0).standard_normal((1, 3, 336, 336)).astype(np.float32)
    values = {"pixel_values": session.upload(pixels)}
    return lambda: void(session.run(values))


def table(times: dict[str, list[float]]) -> list[str]:
    """Return Markdown rows: median, spread and speed-up over the first variant."""
    median = {name: statistics.median(row) for name, row in times.items()}
    first = next(iter(median.values()))
    rows = [
        f"| {name} | {median[name]:.0f} | {min(row):.0f}-{max(row):.0f} | {first / median[name]:.2f} |"
        for name, row in times.items()
    ]
    return ["| variant | median ms | lowest-highest | speed-up |", "|---|---|---|---|", *rows]


@click.command()
@click.option("--layers", default=2, show_default=True)
@click.option("--ratio", default=0.5, show_default=True)
@click.option("--rounds", default=10, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for the bundles, 10 GB.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("docs/llava7b_layers"), show_default=True)
def main(layers: int, ratio: float, rounds: int, threads: int, work: Path, output: Path) -> None:
    """Write OUTPUT.json and OUTPUT.md."""
    both, pruned = f"pruned {ratio:g} + int8", f"pruned {ratio:g}"
    grid = {"baseline": (0.0, False), pruned: (ratio, False), "int8": (0.0, True), both: (ratio, True)}
    bundles = {
        name: variant(work, name.replace(" ", "_"), removed, int8, layers) for name, (removed, int8) in grid.items()
    }
    tokens = bundles["baseline"].manifest.image_tokens
    runs = {name: prefill(bundle, threads) for name, bundle in bundles.items()}
    runs["transformers"] = transformers_prefill(layers, tokens, threads)
    times = interleaved(runs, rounds)
    del runs
    towers = interleaved({name: vision(bundles[name], threads) for name in ("baseline", pruned)}, rounds)
    median = {name: statistics.median(row) for name, row in times.items()}
    speedup = {name: median["baseline"] / value for name, value in median.items()}
    flops = {name: bundle.manifest.flops["prefill"]["after"] for name, bundle in bundles.items()}
    # Paired by round: a busy moment troubles both.
    selection = statistics.median(b / a - 1 for a, b in zip(towers["baseline"], towers[pruned], strict=True))
    summary = {
        "flops_ratio": flops["baseline"] / flops[pruned],
        "expected_both": speedup[pruned] * speedup["int8"],
        "measured_both": speedup[both],
        "both_vs_transformers": median["transformers"] / median[both],
        "selection_cost": selection,
    }
    lines = [
        *table(times),
        "",
        f"FLOPs ratio {summary['flops_ratio']:.2f}; pruning x int8 = {summary['expected_both']:.2f} expected,"
        f" {summary['measured_both']:.2f} measured; both against transformers {summary['both_vs_transformers']:.2f}.",
        "",
        "Vision tower (CLIP ViT-L/14-336, float32) without and with the selection:"
        f" {statistics.median(towers['baseline']):.0f} and {statistics.median(towers[pruned]):.0f} ms,"
        f" median difference per round {100 * selection:+.1f} %.",
        "",
        f"{layers} layers, {tokens} + {TEXT_TOKENS} tokens, {threads} threads, {rounds} rounds,"
        f" {machine.look().processor}, {platform.system()}.",
    ]
    text = "\n".join(lines) + "\n"
    output.parent.mkdir(parents=True, exist_ok=True)
    data = {"layers": layers, "ratio": ratio, "threads": threads, "times_ms": times, "vision_ms": towers, **summary}
    output.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    output.with_suffix(".md").write_text(text, encoding="utf-8")
    click.echo(text)


if __name__ == "__main__":
    main()
