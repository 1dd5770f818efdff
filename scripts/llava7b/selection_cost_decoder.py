"""What the selection costs where the question is known, at 7B's widths: in a prefill, and in each step behind it.

python scripts/llava7b/selection_cost_decoder.py -o docs/results/selection_cost_decoder

Two layers are run, the method's cut in front of one of them; in front of both, it is a graph of its own, which no step
runs. ONNX Runtime's profiler times every node: the selection is the sum of those that the method wrote. Weights are
synthetic: times don't depend on them.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx_ir as ir
from rich.progress import Progress

from lmmprune.compiler.assets.write_assets import image_token_id
from lmmprune.compiler.export.trace import shared_trace
from lmmprune.facts import Facts
from lmmprune.models.facts import facts_of
from lmmprune.models.source import resolve
from lmmprune.models.trace import cache_names
from lmmprune.passes.find.sites import llm_input
from lmmprune.passes.methods import METHODS
from lmmprune.passes.methods.dart import Dart
from lmmprune.passes.reduce.reduce_decoder import ReduceDecoder
from lmmprune.passes.reduce.select_before_layers import select_before_layers
from lmmprune.passes.reduce.stage import Stage

sys.path.insert(0, str(Path(__file__).parents[1]))  # scripts/, where results.py lies

import results
from selection_cost import profile

LAYERS, PREFIX, TEXT = 2, 35, 25
OTHERS = ("cdpruner", "mmtok", "dart", "fastv", "priortr", "sparsevlm", "v2drop")


def cuts(keep: int) -> dict[str, Stage]:
    """Return one cut of every method."""
    methods = {name: METHODS[name]() for name in OTHERS} | {"dart, form=embedding": Dart(form="embedding")}
    before = ("cdpruner", "mmtok", "dart, form=embedding")
    return {
        name: Stage(site=llm_input(0 if name in before else 1), keep=keep, rule=method.rule())
        for name, method in sorted(methods.items())
    }


def inputs(facts: Facts, width: int, image_id: int, heads: tuple[int, int]) -> dict[str, Any]:
    """Return a prompt with a picture of random features, and empty caches."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 30000, (1, PREFIX + facts.tokens + TEXT))
    ids[:, PREFIX : PREFIX + facts.tokens] = image_id
    empty = np.zeros((1, heads[0], 0, heads[1]), np.float32)
    return {
        "input_ids": ids,
        "position_ids": np.arange(ids.shape[1])[None],
        "image_features": rng.standard_normal((1, facts.tokens, width)).astype(np.float32),
        **{name: empty for pair in cache_names(LAYERS)[0] for name in pair},
    }


def step(feeds: dict[str, Any], removed: list[int]) -> dict[str, Any]:
    """Return the inputs of a step behind that prompt, with caches of the lengths that it leaves."""
    length = feeds["input_ids"].shape[1]
    _, heads, _, size = feeds[cache_names(LAYERS)[0][0][0]].shape
    past = {
        name: np.zeros((1, heads, length - gone, size), np.float32)
        for pair, gone in zip(cache_names(LAYERS)[0], removed, strict=True)
        for name in pair
    }
    return feeds | past | {"input_ids": np.array([[7]]), "position_ids": np.array([[length]])}


def before_layers(path: Path, stage: Stage, name: str, feeds: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Time a choice that is a graph of its own, and the layers behind it, which have no part of it."""
    keep, count = stage.keep, feeds["image_features"].shape[1]
    graph = select_before_layers(ir.load(path), stage, method=name, image_tokens=count, prefix=PREFIX)
    assert graph is not None
    chosen = path.with_name("selection.onnx")
    ir.save(graph, chosen)
    rows = [*range(PREFIX + keep), *range(PREFIX + count, feeds["input_ids"].shape[1])]
    shorter = feeds | {"input_ids": feeds["input_ids"][:, rows], "image_features": feeds["image_features"][:, :keep]}
    shorter["position_ids"] = np.arange(len(rows))[None]
    asked = {name: feeds[name] for name in ("input_ids", "image_features")}
    return {
        "nodes": sum(str(node.name).startswith("lmmprune/") for node in graph.graph),
        "prefill_ms": statistics.median(total for _, total in profile(chosen, asked, rounds)),
        "prefill_rest_ms": statistics.median(total for _, total in profile(path, shorter, rounds)),
        "step_ms": 0.0,
        "step_rest_ms": statistics.median(t for _, t in profile(path, step(shorter, [0] * LAYERS), rounds)),
    }


def between_layers(path: Path, stored: ir.Model, run: ReduceDecoder, feeds: dict[str, Any], rounds: int) -> Any:
    """Time a choice between layers: all of its nodes are in the decoder."""
    graph = stored.clone()
    run(graph)
    ir.save(graph, path.with_name("pruned.onnx"))
    row = {"nodes": sum(str(node.name).startswith("lmmprune/") for node in graph.graph)}
    for kind, given in {"prefill": feeds, "step": step(feeds, run.removed_before(LAYERS))}.items():
        times = profile(path.with_name("pruned.onnx"), given, rounds)
        row[f"{kind}_ms"] = statistics.median(ours for ours, _ in times)
        row[f"{kind}_rest_ms"] = statistics.median(total - ours for ours, total in times)
    return row


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("docs/results/selection_cost_decoder"))
@click.option("--model", default="llava-1.5-7b", show_default=True)
@click.option("--keep", type=int, multiple=True, default=(64, 192, 288), show_default=True)
@click.option("--rounds", type=int, default=5, show_default=True)
def main(output: Path, model: str, keep: tuple[int, ...], rounds: int) -> None:
    """Write OUTPUT.json, and its part of the page of what choosing costs."""
    source = resolve(model, weights="dummy", layers=LAYERS)
    facts, decoder = facts_of(source), source.decoder
    feeds = inputs(facts, decoder.width, image_token_id(source), (decoder.kv_heads, decoder.head_dim))
    rows = []
    with tempfile.TemporaryDirectory() as folder, Progress(transient=True) as bar:
        task = bar.add_task("trace", total=len(keep) * len(cuts(1)))
        path = Path(folder) / "decoder.onnx"
        ir.save(shared_trace()(source).decoder, path, external_data="decoder.data")
        stored = ir.load(path)
        for name in cuts(1):
            for count in keep:
                stage = cuts(count)[name]
                row: dict[str, Any] = {"method": name, "site": str(stage.site), "keep": count}
                if stage.site.before_layers:
                    row |= before_layers(path, stage, name, feeds, rounds)
                else:
                    run = ReduceDecoder(method=name, stages=[stage], image_tokens=facts.tokens, prefix=PREFIX)
                    row |= between_layers(path, stored, run, feeds, rounds)
                rows.append(row)
                bar.update(task, advance=1, description=name)
    lines = [
        "| method | site | kept | nodes | prefill, ms | of the two layers | step, ms | of the two layers |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        prefill, after = (row[f"{kind}_ms"] / row[f"{kind}_rest_ms"] for kind in ("prefill", "step"))
        lines.append(
            f"| {row['method']} | {row['site']} | {row['keep']} | {row['nodes']} | {row['prefill_ms']:.1f} |"
            f" {prefill:.1%} | {row['step_ms']:.1f} | {after:.1%} |"
        )
    results.write(output, rows, "\n".join(lines), page=output.with_name("selection_cost.md"))
    click.echo("\n".join(lines))


if __name__ == "__main__":
    main()
