"""How long a bundle takes to load beside reading its bytes, and where the time goes.

    lmmprune export --model llava-1.5-7b --weights dummy --int8 -o /tmp/out/int8
    lmmprune export --model llava-1.5-7b --weights dummy --int4 -o /tmp/out/int4
    python scripts/llava7b/load_time.py /tmp/out/int8 /tmp/out/int4 -o docs/results/load_time

Each measurement is a process of its own, and they take turns: reading all files into one buffer, then
``Runtime(Bundle.open(...))``, both from the disk (the files' pages are dropped before) and from the page cache; of each
the median, and of the ratio within a round. Then graph by graph, with and without packing, and what each step took of
the processor: seconds of work are nearly the same beside other programs, those on the wall aren't.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from lmmprune.compiler.backends.onnxruntime import session_options
from lmmprune.compiler.backends.open_graph import open_graph
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.errors import require

sys.path.insert(0, str(Path(__file__).parents[1]))  # scripts/, where results.py lies

import results
from bench_llava7b import resident

_BUFFER = 2**22


def drop(bundle: Path) -> None:
    """Let go of the pages of a bundle's files, so that they come from the disk again."""
    for file in bundle.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fdatasync(descriptor)  # what isn't written yet stays
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read(bundle: Path) -> None:
    """Read all bytes of a bundle, keeping none."""
    buffer = bytearray(_BUFFER)
    for file in bundle.iterdir():
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def timed(work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Return seconds on the wall and of the processor, and what the work gives."""
    wall, used = time.perf_counter(), time.process_time()
    made = work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - used}, made


def parts(path: Path) -> dict[str, Any]:
    """Return what each step of loading takes, from the page cache."""
    read(path)
    found: dict[str, Any] = {}
    found["open"], bundle = timed(lambda: Bundle.open(path))
    ort = require("onnxruntime", "cpu")
    for component, graph in bundle.manifest.graphs.items():
        for name, packing in (("graph", "1"), ("packed", "0")):
            options = session_options(ort, None)
            options.add_session_config_entry("session.disable_prepacking", packing)
            opening = functools.partial(open_graph, ort, bundle.file(graph.file), options)
            found[f"{component}, {name}"], made = timed(opening)
            del made
    return found


def work(what: str, path: Path) -> dict[str, Any]:
    """Do one measurement."""
    if what == "parts":
        return parts(path)
    if what.endswith("disk"):
        drop(path)
    else:
        read(path)
    base = resident()
    if what.startswith("read"):
        return timed(lambda: read(path))[0]
    spent, runtime = timed(lambda: Runtime(Bundle.open(path)))
    after = resident()
    del runtime
    return {**spent, "base": base, "after": after}


WHAT = ("read, disk", "load, disk", "read, cache", "load, cache")


def measure(what: str, path: Path) -> dict[str, Any]:
    """Do ``work`` in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--worker", what, str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise click.ClickException(f"{path}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def ratios(rounds: Sequence[dict[str, Any]], where: str) -> float:
    """Return the median of loading over reading within a round."""
    return statistics.median(one[f"load, {where}"]["wall"] / one[f"read, {where}"]["wall"] for one in rounds)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the Markdown tables."""
    lines = [
        "| bundle | GiB | from | read, s | load, s | lowest-highest | load / read | work of the processor, s |",
        "|---|--:|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        for where, called in (("disk", "the disk"), ("cache", "the page cache")):
            reads, loads, used = (
                [one[f"{what}, {where}"][key] for one in row["rounds"]]
                for what, key in (("read", "wall"), ("load", "wall"), ("load", "cpu"))
            )
            lines.append(
                f"| {row['name']} | {row['bytes'] / 2**30:.2f} | {called} | {statistics.median(reads):.2f} |"
                f" {statistics.median(loads):.2f} | {min(loads):.2f}-{max(loads):.2f} |"
                f" {ratios(row['rounds'], where):.2f} | {statistics.median(used):.2f} |"
            )
    steps = [(row["name"], step, spent) for row in rows for step, spent in row["parts"].items()]
    lines += ["", "| bundle | step, from the page cache | s | work of the processor, s |", "|---|---|--:|--:|"]
    lines += [f"| {name} | {step} | {spent['wall']:.2f} | {spent['cpu']:.2f} |" for name, step, spent in steps]
    lines += ["", "| bundle | GiB of files | own, GiB | mapped, GiB | peak, GiB |", "|---|--:|--:|--:|--:|"]
    for row in rows:
        last = row["rounds"][-1]["load, cache"]["after"]
        cells = (row["bytes"], last["own"], last["mapped"], last["peak"])
        lines.append(f"| {row['name']} | {' | '.join(f'{size / 2**30:.2f}' for size in cells)} |")
    return "\n".join(lines)


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--rounds", default=3, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Writes OUTPUT.json and .md")
def main(*, bundles: tuple[Path, ...], rounds: int, output: Path) -> None:
    """Measure."""
    rows: list[dict[str, Any]] = [
        {"name": path.name, "bytes": Bundle.open(path).bytes, "rounds": []} for path in bundles
    ]
    for number in range(rounds):
        for path, row in zip(bundles, rows, strict=True):
            row["rounds"].append({what: measure(what, path) for what in WHAT})
            click.echo(f"{path.name}, round {number + 1}: {row['rounds'][-1]}", err=True)
    for path, row in zip(bundles, rows, strict=True):
        row["parts"] = measure("parts", path)
    require("onnxruntime", "cpu")  # its version belongs to the result
    results.write(output, {"rows": rows}, table(rows))
    click.echo(table(rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(work(sys.argv[2], Path(sys.argv[3]))))
    else:
        main()
