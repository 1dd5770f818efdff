"""What the selection costs beside the vision tower, per method, at CLIP-L's size (synthetic weights, CPU).

python scripts/llava7b/selection_cost.py -o docs/results/selection_cost

ONNX Runtime's profiler times every node: the selection is the sum of those that a method wrote, the tower all others.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from rich.progress import Progress

from lmmprune.compiler.export.trace import shared_trace
from lmmprune.facts import Facts
from lmmprune.models.facts import facts_of
from lmmprune.models.source import resolve
from lmmprune.passes.methods import METHODS
from lmmprune.passes.reduce.reduce_vision import ReduceVision

sys.path.insert(0, str(Path(__file__).parents[1]))  # scripts/, where results.py lies

import results


def vision_methods(facts: Facts, keep: int) -> dict[str, Any]:
    """Return the stages of every method that does something in the vision graph."""
    plans = {name: method().plan(facts, keep) for name, method in METHODS.items()}
    return {name: plan for name, plan in plans.items() if any(not stage.site.in_decoder for stage in plan)}


def profile(graph: Path, feeds: dict[str, Any], rounds: int) -> list[tuple[float, float]]:
    """Return (selection, everything) in ms of every round."""
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(graph.with_suffix(""))
    options.log_severity_level = 3
    session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    for _ in range(rounds + 1):
        session.run(None, feeds)
    file = Path(session.end_profiling())
    events = json.loads(file.read_text(encoding="utf-8"))
    file.unlink()
    runs: list[tuple[float, float]] = []
    ours = total = 0.0
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            total += event["dur"] / 1e3
            ours += event["dur"] / 1e3 if "lmmprune/" in event["name"] else 0.0
        elif event["name"] == "model_run":
            runs.append((ours, total))
            ours = total = 0.0
    return runs[1:]


@click.command()
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("docs/results/selection_cost"), show_default=True
)
@click.option("--model", default="llava-1.5-7b", show_default=True)
@click.option("--keep", type=int, default=288, show_default=True)
@click.option("--rounds", type=int, default=5, show_default=True)
def main(output: Path, model: str, keep: int, rounds: int) -> None:
    """Write OUTPUT.json and OUTPUT.md."""
    source = resolve(model, weights="dummy", layers=1)
    # The paper's decoder: schedules that reach into it are as at full size.
    facts = facts_of(source, decoder_layers=32)
    plans = vision_methods(facts, keep)
    pixels = np.random.default_rng(0).standard_normal((1, 3, *source.vision.image_size)).astype(np.float32)
    rows = []
    with tempfile.TemporaryDirectory() as folder, Progress(transient=True) as bar:
        task = bar.add_task("trace", total=len(plans) + 1)
        path = Path(folder) / "vision.onnx"
        # Stored once: every pruned graph then points into the same file of weights.
        ir.save(shared_trace()(source).vision, path, external_data="vision.data")
        stored = ir.load(path)
        for name, stages in {"unpruned": (), **plans}.items():
            graph = stored.clone()
            ReduceVision(method=name, stages=stages, grid=facts.grid)(graph)
            ir.save(graph, path.with_name("pruned.onnx"))
            times = profile(path.with_name("pruned.onnx"), {"pixel_values": pixels}, rounds)
            ours = statistics.median(time for time, _ in times)
            whole = statistics.median(total for _, total in times)
            share = statistics.median(time / (total - time) for time, total in times)
            sites = [str(stage.site) for stage in stages if not stage.site.in_decoder]
            rows.append({"method": name, "sites": sites, "selection_ms": ours, "graph_ms": whole, "share": share})
            bar.update(task, advance=1, description=name)
    lines = ["| method | site | selection, ms | of the rest | vision graph, ms |", "|---|---|---|---|---|"]
    for row in rows:
        site = (
            "-" if not row["sites"] else row["sites"][0] + (f" .. {row['sites'][-1]}" if len(row["sites"]) > 1 else "")
        )
        lines.append(
            f"| {row['method']} | {site} | {row['selection_ms']:.1f} | {row['share']:.2%} | {row['graph_ms']:.0f} |"
        )
    results.write(output, rows, "\n".join(lines))
    click.echo("\n".join(lines))


if __name__ == "__main__":
    main()
