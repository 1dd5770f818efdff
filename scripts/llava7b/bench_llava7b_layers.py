"""LLaVA-7B-wide decoder layers on this CPU: baseline, pruned, int8 and both, beside two others, interleaved.

    python scripts/llava7b/bench_llava7b_layers.py --layers 2 --work /tmp/work -o docs/results/llava7b_layers

Synthetic weights at the real widths (4096/11008): times depend on shapes, not on values. Timed are the prefill of the
decoder and one decode step with the cache that it leaves, at the visual tokens of LLaVA-1.5 (576) and of LLaVA-NeXT
(2880), of which each ratio removes its part. Pruning at the vision output shortens the sequence and nothing else, so
that the pruned variants are the same graphs at fewer tokens. Beside them: both decoders with ONNX's own ``Attention``
behind a cache that grows by concatenation (as ``openvino-cpu`` takes them), onnxruntime's own ``quantize_dynamic`` of
the float decoder, and transformers.
All of them stay loaded, in one process of less than 20 GiB. Two sessions of the same graph aren't equally fast: the
int8 decoders are loaded twice each, ours first and last, and the rounds take turns. The order within a round is drawn
anew for each, too.
"""

from __future__ import annotations

import platform
import random
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime as ort
from layers.engines import (
    MODEL,
    Run,
    bound,
    decoder_runs,
    load,
    stock,
    transformers_model,
    transformers_runs,
)
from layers.table import FLOAT, INT8, PLAIN, STOCK, TORCH, Times, Variant, report, speedup, summary

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.export.export import export
from lmmprune.compiler.export.request import Request
from lmmprune.compiler.export.values import Int8, Ratio
from lmmprune.compiler.flops.formula import TEXT_TOKENS
from lmmprune.compiler.measure.memory import peak_bytes
from lmmprune.compiler.targets import machine
from lmmprune.passes.methods import keep_count

sys.path.insert(0, str(Path(__file__).parents[1]))  # scripts/, where results.py lies

import results


def variant(
    folder: Path, name: str, layers: int, ratio: float = 0.0, int8: bool = False, target: str = "ort-cpu"
) -> Bundle:
    """Export a bundle unless it is there."""
    path = folder / f"{name}_{layers}_layers"
    if not path.is_dir():
        click.echo(f"export {path.name}", err=True)
        request = Request(
            model=MODEL,
            output=path,
            tokens=Ratio(ratio),
            int8=Int8() if int8 else None,
            weights="dummy",
            layers=layers,
            calibration_samples=2,
            judge=False,
            target=target,
        )
        export(request)
    return Bundle.open(path)


def interleaved(runs: Mapping[str, Sequence[Run]], rounds: int) -> Times:
    """Time every variant once per round, in an order drawn for it; milliseconds.

    A variant with several sessions uses them in turn. Each is run once before, and a run of less than a second once
    more before every timed one: threads of the session before it go on spinning for a while, which a run of a second
    doesn't notice and one of 20 ms does.
    """
    short = {name for name, copies in runs.items() if max(map(seconds, copies)) < 1}
    times: Times = {name: [] for name in runs}
    order = random.Random(0)
    for number in range(rounds):
        for name in order.sample(list(runs), len(runs)):
            once = runs[name][number % len(runs[name])]
            if name in short:
                once()
            times[name].append(seconds(once) * 1e3)
    return times


def seconds(run: Run) -> float:
    """Run, and return how long it took."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def variants(tokens: int, ratios: Sequence[float]) -> list[Variant]:
    """Return the rows for one number of visual tokens."""
    lengths = {0.0: tokens, **{ratio: keep_count(tokens, ratio=ratio) for ratio in ratios}}
    rows = [
        Variant(engine=engine, ratio=ratio, length=keep + TEXT_TOKENS)
        for engine in (FLOAT, INT8, STOCK)
        for ratio, keep in lengths.items()
    ]
    whole = (FLOAT + PLAIN, INT8 + PLAIN, TORCH)
    return [*rows, *(Variant(engine=engine, ratio=0.0, length=tokens + TEXT_TOKENS) for engine in whole)]


def towers(bundles: dict[str, Bundle], threads: int, rounds: int) -> Times:
    """Time the vision tower of every bundle."""
    pixels = {"pixel_values": np.random.default_rng(0).standard_normal((1, 3, 336, 336)).astype(np.float32)}
    runs = {name: [bound(load(bundle.vision, threads), pixels)] for name, bundle in bundles.items()}
    return interleaved(runs, rounds)


@click.command()
@click.option("--layers", default=2, show_default=True)
@click.option("--ratio", "ratios", multiple=True, type=float, default=(0.5, 0.75, 0.9), show_default=True)
@click.option("--tokens", "counts", multiple=True, type=int, default=(576, 2880), show_default=True)
@click.option("--rounds", default=10, show_default=True, help="An even number: both sessions of a decoder get half.")
@click.option("--threads", default=2, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for the bundles, 15 GB.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("docs/results/llava7b_layers"), show_default=True
)
def main(
    layers: int,
    ratios: tuple[float, ...],
    counts: tuple[int, ...],
    rounds: int,
    threads: int,
    work: Path,
    output: Path,
) -> None:
    """Write OUTPUT.json and OUTPUT.md."""
    work.mkdir(parents=True, exist_ok=True)
    plain = variant(work, "baseline", layers)
    int8 = variant(work, "int8", layers, int8=True)
    attention = {
        FLOAT + PLAIN: variant(work, "baseline_attention", layers, target="openvino-cpu"),
        INT8 + PLAIN: variant(work, "int8_attention", layers, int8=True, target="openvino-cpu"),
    }
    pruned = variant(work, f"pruned_{ratios[0]:g}", 1, ratio=ratios[0])  # only its tower is run
    graphs = {FLOAT: plain.decoder, INT8: int8.decoder, STOCK: stock(attention[FLOAT + PLAIN])}
    graphs |= {name: bundle.decoder for name, bundle in attention.items()}
    vision = towers({"baseline": plain, f"pruned {ratios[0]:g}": pruned, INT8: int8}, threads, rounds)

    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, None)
    sessions: dict[str, list[Any]] = {engine: [] for engine in graphs}
    for engine in (FLOAT, INT8, STOCK, *attention, STOCK, INT8):
        sessions[engine].append(load(graphs[engine], threads))
    model = transformers_model(layers, threads)
    lines: list[str] = []
    data: dict[str, Any] = {"layers": layers, "ratios": ratios, "threads": threads, "rounds": rounds}
    for tokens in counts:
        rows = variants(tokens, ratios)
        growing = {STOCK, *attention}
        runs = {
            row.name: [
                decoder_runs(session, attention[FLOAT + PLAIN] if row.engine in growing else plain, row.length)
                for session in sessions[row.engine]
            ]
            for row in rows
            if row.engine in sessions
        }
        runs[TORCH] = [transformers_runs(model, rows[0].length)]
        prefill = interleaved({name: [first for first, _ in copies] for name, copies in runs.items()}, rounds)
        steps = {name: [second for _, second in copies] for name, copies in runs.items()}
        decode = interleaved(steps, 4 * rounds)
        found = summary(prefill, decode, ratios)
        lines += report(tokens, rows, prefill, decode, found)
        data[f"tokens_{tokens}"] = {"prefill_ms": prefill, "decode_ms": decode, **found}
        del runs

    medians = ", ".join(f"{name} {statistics.median(row):.0f}" for name, row in vision.items())
    cost = speedup(vision[f"pruned {ratios[0]:g}"], vision["baseline"]) - 1
    data |= {"vision_ms": vision, "selection_cost": cost, "peak_bytes": peak_bytes()}
    lines += [
        f"Vision tower (CLIP ViT-L/14-336), ms: {medians}; the selection costs {100 * cost:+.1f} %.",
        "",
        f"{layers} decoder layers, {threads} threads, {rounds} rounds, {machine.detect_machine().processor}, "
        f"{platform.system()}, onnxruntime {ort.__version__}; speed-ups are medians of the ratio within a round.",
    ]
    text = "\n".join(lines) + "\n"
    results.write(output, data, text)
    click.echo(text)


if __name__ == "__main__":
    main()
