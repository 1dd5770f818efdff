"""Time the rewriting of LLaVA-1.5-7B's whole decoder with ficoco-l's cuts in 28 layers; no weight is read.

python scripts/llava7b/rewrite_time.py -o docs/rewrite_time
"""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path

import click

from lmmprune.compiler.assets.write_assets import image_token_id
from lmmprune.models.canonical import canonical_graphs
from lmmprune.models.facts import facts_of
from lmmprune.models.source import resolve
from lmmprune.passes.methods import get_method
from lmmprune.passes.reduce.reduce_decoder import ReduceDecoder


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("docs/rewrite_time"), show_default=True)
@click.option("--keep", type=int, default=394, show_default=True, help="Visual tokens per layer, on average.")
def main(output: Path, keep: int) -> None:
    """Write OUTPUT.json."""
    source = resolve("llava-1.5-7b", weights="dummy")
    started = time.perf_counter()
    decoder = canonical_graphs(source, image_token_id=image_token_id(source)).decoder
    traced = time.perf_counter() - started
    facts = facts_of(source)
    stages = get_method("ficoco-l").plan(facts, keep)
    before = decoder.graph.num_nodes()
    started, cpu = time.perf_counter(), time.process_time()
    ReduceDecoder(method="ficoco-l", stages=stages, image_tokens=facts.tokens, prefix=35)(decoder)
    row = {
        "cuts": len(stages),
        "counts": [stage.keep for stage in stages],
        "nodes": [before, decoder.graph.num_nodes()],
        "trace_s": traced,
        "rewrite_s": time.perf_counter() - started,
        "rewrite_cpu_s": time.process_time() - cpu,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    click.echo(json.dumps(row))


if __name__ == "__main__":
    main()
