"""A whole LLaVA-1.5-7B on this CPU: load time, time to first token, time per token and resident memory of bundles.

    python scripts/llava7b/make_dummy_checkpoint.py --model llava-1.5-7b -o /tmp/llava-7b
    lmmprune export --model /tmp/llava-7b --int8 --static-cache 768 -o /tmp/out/baseline
    lmmprune export --model /tmp/llava-7b --int8 --static-cache 480 --ratio 0.5 -o /tmp/out/pruned-50  # and 250, 0.9
    lmmprune export --model /tmp/llava-7b --int8 -o /tmp/out/baseline-growing
    python scripts/llava7b/bench_llava7b.py /tmp/out/* --image PICTURE -o docs/results/llava7b  # the first: baseline

Two of them don't fit into 24 GiB together, so each measurement is a process of its own, and the bundles take turns:
one, two, three, and again from the first. A process loads its bundle, answers twice untimed (the first answers touch
7 GB of memory for the first time and take up to half as long again), then ``--answers`` times.
Memory is what Linux says of the process after the answers: the weights count once, wherever they are.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.compiler.targets import machine

sys.path.insert(0, str(Path(__file__).parents[1]))  # scripts/, where results.py lies

import results

_WARM_UP = 2
"""Untimed answers."""


def resident() -> dict[str, int]:
    """Return the resident bytes of this process: its own, those of mapped files, and the peak of both."""
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    names = {"own": "RssAnon", "mapped": "RssFile", "peak": "VmHWM"}
    return {name: int(rows[key].split()[0]) * 1024 for name, key in names.items()}


def work(path: str, image: str, prompt: str, tokens: int, answers: int) -> dict[str, Any]:
    """Load one bundle and answer; milliseconds and bytes."""
    from lmmprune.compiler.runtime.open_picture import load_image

    picture = load_image(image)
    base = resident()
    start = time.perf_counter()
    runtime = Runtime(Bundle.open(path))
    loaded = (time.perf_counter() - start) * 1e3
    rows = []
    for number in range(_WARM_UP + answers):
        visual = runtime.encode_image(picture)
        encoded = runtime.prompter.encode(prompt, image_tokens=visual.tokens)
        steps = [ms for _, ms in runtime.generate(visual, encoded, tokens)]
        if number >= _WARM_UP:
            first = visual.preprocess_ms + visual.vision_ms + steps[0]
            rows.append(
                {"vision": visual.vision_ms, "prefill": steps[0], "ttft": first, "step": statistics.median(steps[1:])}
            )
    return {"load": loaded, "answers": rows, "base": base, "memory": resident(), "length": encoded.length}


def measure(path: Path, image: Path, prompt: str, tokens: int, answers: int) -> dict[str, Any]:
    """Do ``work`` in a process of its own."""
    arguments = [str(path), str(image), prompt, str(tokens), str(answers)]
    done = subprocess.run(
        [sys.executable, __file__, "--worker", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise click.ClickException(f"{path}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def cache_bytes(bundle: Bundle, length: int) -> int:
    """Return the size of the key/value cache behind so many tokens, or that of a fixed one; shorter behind cuts."""
    cache = bundle.manifest.cache
    length = cache.capacity or length
    row = cache.kv_heads * cache.head_dim * {"float32": 4, "float16": 2, "bfloat16": 2}[bundle.manifest.precision.dtype]
    return sum(2 * row * (length + offset) for offset in cache.length_offsets)


COLUMNS = (
    *("bundle", "tokens", "load s", "vision s", "prefill s", "TTFT s", "lowest-highest", "speed-up", "FLOPs ratio"),
    *("ms/token", "resident GiB", "weights + cache GiB", "ratio"),
)


def table(rows: Sequence[dict[str, Any]], facts: str) -> str:
    """Return the Markdown table."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|---|{'--:|' * (len(COLUMNS) - 1)}"]
    first = statistics.median(answer["ttft"] for answer in rows[0]["answers"])
    for row in rows:
        vision, prefill, ttft, step = (
            statistics.median(answer[key] for answer in row["answers"]) for key in ("vision", "prefill", "ttft", "step")
        )
        times = [answer["ttft"] / 1e3 for answer in row["answers"]]
        held = row["weights"] + row["cache"]
        cells = [
            *(row["name"], row["tokens"], f"{statistics.median(row['loads']) / 1e3:.1f}"),
            *(f"{vision / 1e3:.2f}", f"{prefill / 1e3:.2f}", f"{ttft / 1e3:.2f}", f"{min(times):.2f}-{max(times):.2f}"),
            *(f"{first / ttft:.2f}", f"{rows[0]['flops'] / row['flops']:.2f}", f"{step:.0f}"),
            *(f"{row['resident'] / 2**30:.2f}", f"{held / 2**30:.2f}", f"{row['resident'] / held:.2f}"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", facts, ""])


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--image", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--prompt", default="which digit is bottommost?", show_default=True)
@click.option("--tokens", default=8, show_default=True, help="Of each answer.")
@click.option("--answers", default=4, show_default=True, help="Timed answers per process.")
@click.option("--rounds", default=2, show_default=True, help="Processes per bundle.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Writes OUTPUT.json and .md")
def main(
    *, bundles: tuple[Path, ...], image: Path, prompt: str, tokens: int, answers: int, rounds: int, output: Path
) -> None:
    """Measure."""
    found: dict[Path, list[dict[str, Any]]] = {path: [] for path in bundles}
    for _ in range(rounds):
        for path in bundles:
            found[path].append(measure(path, image, prompt, tokens, answers))
            click.echo(f"{path.name}: {found[path][-1]}", err=True)
    rows = []
    for path, runs in found.items():
        bundle = Bundle.open(path)
        manifest = bundle.manifest
        rows.append(
            {
                "name": path.name,
                "tokens": f"{manifest.tokens_before} -> {manifest.image_tokens}",
                "length": runs[0]["length"],
                "loads": [run["load"] for run in runs],
                "answers": [answer for run in runs for answer in run["answers"]],
                "resident": max(run["memory"]["own"] + run["memory"]["mapped"] for run in runs),
                "peak": max(run["memory"]["peak"] for run in runs),
                "libraries": max(run["base"]["own"] + run["base"]["mapped"] for run in runs),
                "weights": bundle.bytes,
                "cache": cache_bytes(bundle, runs[0]["length"] + tokens),
                "flops": sum(part["after"] for part in manifest.flops.values()),
                "precision": f"{manifest.precision.dtype}, {manifest.precision.int8}",
            }
        )
    here = machine.detect_machine()
    facts = (
        f"{here.processor}, {here.cores} cores, {(here.memory or 0) / 2**30:.0f} GiB; {rows[0]['precision']}; "
        f"{rounds} processes per bundle in turns, {answers} answers of {tokens} tokens each; resident memory is that"
        f" of the process less {max(row['libraries'] for row in rows) / 2**20:.0f} MiB that it had before."
    )
    for row in rows:
        row["resident"] -= row["libraries"]
    data = {"facts": facts, "rows": rows}
    results.write(output, data, table(rows, facts))
    click.echo(table(rows, facts))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        where, picture, question, count, times = sys.argv[2:]
        print(json.dumps(work(where, picture, question, int(count), int(times))))
    else:
        main()
