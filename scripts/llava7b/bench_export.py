"""Export one checkpoint with lmmprune, with ``torch.onnx.export`` the plain way, and with mobius-onnx, side by side.

    python scripts/llava7b/bench_export.py --work /tmp/work --layers 2 --layers 32 -o docs/results/bench_export

Every export is a process of its own, one after the other, of the same float16 checkpoint (made here, see
make_dummy_checkpoint.py) to float16 ONNX. Measured are wall-clock seconds, the peak resident memory and the bytes
left on disk. A process that asks for more than ``--limit-gib`` of memory fails: at that size its tool cannot go on.
Beside them ``cp`` of the checkpoint, for what the disk takes; it and every export
find the checkpoint outside of the page cache. mobius-onnx must be installed to be in the table
(see export_peers/mobius_llava.py).
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from lmmprune.compiler.targets import machine

sys.path.insert(0, str(Path(__file__).parents[1]))  # scripts/, where results.py lies

import results

HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Row:
    """One export: seconds, peak bytes, bytes on disk; None where it failed, with the reason."""

    tool: str
    layers: int
    checkpoint: int
    seconds: float | None = None
    peak: int | None = None
    disk: int | None = None
    failed: str | None = None
    steps: dict[str, float] | None = None


def commands(checkpoint: Path, output: Path) -> dict[str, list[str]]:
    """Return how each tool is started."""
    files = [str(checkpoint), str(output)]
    ours = [sys.executable, "-m", "lmmprune.compiler.cli", "export", "--model", str(checkpoint), "--dtype", "float16"]
    return {
        "lmmprune": [*ours, "-o", str(output), "--json"],
        "lmmprune, ratio 0.5": [*ours, "--ratio", "0.5", "-o", str(output), "--json"],
        "lmmprune --share-weights": [*ours, "--share-weights", "-o", str(output), "--json"],
        "torch.onnx.export": [sys.executable, str(HERE / "export_peers" / "plain_torch.py"), *files],
        "mobius-onnx": [sys.executable, str(HERE / "export_peers" / "mobius_llava.py"), *files],
    }  # fmt: skip


def run(tool: str, command: Sequence[str], row: Row, output: Path, limit: int) -> Row:
    """Run one export and look at what it took."""
    shutil.rmtree(output, ignore_errors=True)
    if "lmmprune" not in tool:
        output.mkdir()

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    start = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=limited
    ) as process:
        out, err = process.communicate()
        seconds = time.perf_counter() - start
    # The largest of all children so far would be no measure of this one: the children say it themselves.
    peak = int(err.rsplit("peak_rss=", 1)[1].split()[0]) if "peak_rss=" in err else None
    if process.returncode != 0:
        # The exception's own line, not a progress bar that comes to its end behind it.
        lines = [line.strip() for line in err.splitlines() if "Error" in line.split(":")[0]]
        last = lines[-1] if lines else f"exit code {process.returncode}"
        return Row(**(asdict(row) | {"failed": last[:160], "seconds": seconds, "peak": peak}))
    disk = sum(file.stat().st_size for file in output.rglob("*") if file.is_file() and file.stat().st_nlink == 1)
    steps = json.loads(out)["steps"] if "lmmprune" in tool else None
    return Row(**(asdict(row) | {"seconds": seconds, "peak": peak, "disk": disk, "steps": steps}))


def copy_seconds(checkpoint: Path, to: Path, pause: float) -> float:
    """Copy a checkpoint's weights with cp, and return the median of three times.

    Args:
        checkpoint: Its folder.
        to: Goes away again.
        pause: Seconds to wait before each: an export begins to write when its graphs are done, and a virtual machine's
            host takes free memory back meanwhile, which makes the page cache that both fill twice as expensive.
    """
    times = []
    for _ in range(3):
        shutil.rmtree(to, ignore_errors=True)
        to.mkdir()
        forget(checkpoint)
        time.sleep(pause)
        start = time.perf_counter()
        subprocess.run(["cp", *map(str, checkpoint.glob("*.safetensors")), str(to)], check=True)
        times.append(time.perf_counter() - start)
    shutil.rmtree(to)
    return statistics.median(times)


def forget(checkpoint: Path) -> None:
    """Put the weights out of the page cache: what was read or written last would be the fastest."""
    os.sync()
    for file in checkpoint.glob("*.safetensors"):
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def checkpoint_of(model: str, layers: int, work: Path) -> Path:
    """Make a checkpoint unless it is there."""
    path = work / f"{model}-{layers}"
    if not (path / "model.safetensors.index.json").is_file():
        script = str(HERE / "make_dummy_checkpoint.py")
        subprocess.run([sys.executable, script, "--model", model, "--layers", str(layers), "-o", str(path)], check=True)
    return path


def graph_seconds(row: Row) -> float:
    """Return what an export of ours took before it began to write."""
    return sum(seconds for step, seconds in (row.steps or {}).items() if not step.startswith(("write ", "checksums")))


def table(rows: Sequence[Row], copies: dict[int, float], facts: dict[str, object]) -> str:
    """Return the Markdown table."""
    lines = [
        f"Machine: {facts['processor']}, {facts['cores']} cores, {facts['memory_gib']:.0f} GiB; float16 to float16."
    ]
    lines += [
        "",
        "| decoder layers | checkpoint | tool | seconds | peak memory | on disk |",
        "|--:|--:|---|--:|--:|--:|",
    ]
    for row in rows:
        took = f"{row.seconds:.0f}" if row.failed is None else f"fails after {row.seconds:.0f}"
        peak = f"{row.peak / 2**30:.2f} GiB" if row.peak else ""
        disk = f"{row.disk / 2**30:.2f} GiB" if row.disk is not None else (row.failed or "").replace("|", "/")
        lines.append(f"| {row.layers} | {row.checkpoint / 2**30:.1f} GiB | {row.tool} | {took} | {peak} | {disk} |")
    lines.append("")
    for row in rows:
        if row.tool == "lmmprune" and row.steps and row.layers in copies:
            streamed = sum(row.steps.values()) - graph_seconds(row)
            lines.append(
                f"{row.layers} layers: graphs {graph_seconds(row):.0f} s; weights streamed in {streamed:.1f} s,"
                f" `cp` of the same bytes takes {copies[row.layers]:.1f} s: ratio {streamed / copies[row.layers]:.2f}."
            )
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--model", default="llava-1.5-7b", show_default=True)
@click.option("--layers", "depths", type=int, multiple=True, default=(2,), show_default=True)
@click.option("--only", multiple=True, help="Tools to run, by the beginnings of their names; all by default.")
@click.option("--limit-gib", type=float, help="Memory of a process; nine tenths of the machine's by default.")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for checkpoints and outputs.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Writes OUTPUT.json and .md")
def main(
    *, model: str, depths: Sequence[int], only: Sequence[str], limit_gib: float | None, work: Path, output: Path
) -> None:
    """Run the comparison."""
    here = machine.detect_machine()
    limit = int((limit_gib or (here.memory or 0) / 2**30 * 0.9) * 2**30)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(HERE / "export_peers" / "measured"), os.environ.get("PYTHONPATH", "")]
    )
    rows: list[Row] = []
    copies: dict[int, float] = {}
    for layers in depths:
        checkpoint = checkpoint_of(model, layers, work)
        size = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
        for tool, command in commands(checkpoint, work / "out").items():
            if only and not tool.startswith(tuple(only)):
                continue
            if tool == "mobius-onnx" and importlib.util.find_spec("mobius") is None:
                click.echo("mobius-onnx isn't installed: not in the table", err=True)
                continue
            click.echo(f"{layers} layers: {tool}", err=True)
            forget(checkpoint)
            rows.append(run(tool, command, Row(tool=tool, layers=layers, checkpoint=size), work / "out", limit))
            click.echo(f"  {rows[-1]}", err=True)
            if tool == "lmmprune" and rows[-1].failed is None:
                copies[layers] = copy_seconds(checkpoint, work / "copy", graph_seconds(rows[-1]))
        shutil.rmtree(work / "out", ignore_errors=True)
    facts = {
        "processor": here.processor,
        "cores": here.cores,
        "memory_gib": (here.memory or 0) / 2**30,
        "python": platform.python_version(),
        "limit_gib": limit / 2**30,
    }
    data = {"model": model, "facts": facts, "rows": [asdict(row) for row in rows], "copy_seconds": copies}
    results.write(output, data, table(rows, copies, facts))
    click.echo(table(rows, copies, facts))


if __name__ == "__main__":
    main()
