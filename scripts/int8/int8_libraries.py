"""INT8 by others, beside ours: onnxruntime.quantization, NVIDIA ModelOpt and neural-compressor on the same graphs.

python scripts/int8/int8_libraries.py -o docs/results/int8_libraries --modelopt VENV/bin/python --inc VENV/bin/python

Each tool quantizes both float32 graphs of a bundle in a process of its own, on the same recorded calibration inputs.
Then, here: the error of the outputs on held-out samples (the metric of ``sensitivity.scan``), questions answered right,
latency in an interleaved run, and what our lint says. ModelOpt and neural-compressor want other versions of onnx and
onnxruntime than ours, so each has a virtual environment of its own (with click and numpy).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from peers.tools import TINY
from peers.worker import work_on

sys.path.insert(0, str(Path(__file__).parents[1]))  # scripts/, where results.py lies

_COMMON = {"model": TINY, "weights": "auto", "layers": None, "samples": 32, "large": False}
CELLS: dict[str, dict[str, Any]] = {
    "tiny-llava, unpruned": {**_COMMON, "ratio": None},
    "tiny-llava, freepruner, half of the tokens": {**_COMMON, "ratio": 0.5},
}
WIDE: dict[str, dict[str, Any]] = {
    "LLaVA-7B's widths, two decoder layers, half of the tokens": {
        "model": "llava-1.5-7b",
        "weights": "dummy",
        "layers": 2,
        "samples": 2,
        "large": True,
        "ratio": 0.5,
    }
}


@click.command()
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("docs/results/int8_libraries"), show_default=True
)
@click.option("--modelopt", "modelopt_python", default="", help="Python of the environment with nvidia-modelopt.")
@click.option("--inc", "inc_python", default="", help="Python of the environment with neural-compressor 2.x.")
@click.option("--questions", type=int, default=500, show_default=True)
@click.option("--rounds", type=int, default=200, show_default=True)
@click.option("--threads", type=int, default=1, show_default=True, help="For latency.")
@click.option("--wide", is_flag=True, help="Also LLaVA-7B's widths, two decoder layers (an hour, 20 GB).")
@click.option("--worker", hidden=True)
@click.option("--work", type=click.Path(path_type=Path), hidden=True)
@click.option("--folder", type=click.Path(path_type=Path), hidden=True)
def main(
    output: Path,
    modelopt_python: str,
    inc_python: str,
    questions: int,
    rounds: int,
    threads: int,
    wide: bool,
    worker: str | None,
    work: Path,
    folder: Path,
) -> None:
    """Write OUTPUT.json and OUTPUT.md."""
    if worker:
        work_on(worker, work, folder)
        return
    # A worker's environment may have none of what these import.
    import results
    from peers.inputs import prepare
    from peers.measure import measure
    from peers.table import markdown

    from lmmprune.compiler.export.trace import shared_trace

    pythons = {"ModelOpt": modelopt_python, "neural-compressor": inc_python}
    traced, found = shared_trace(), {}
    for title, setup in {**CELLS, **(WIDE if wide else {})}.items():
        with tempfile.TemporaryDirectory(prefix="int8_libraries.") as name:
            place = Path(name) / "model"
            prepare(place, setup, traced)
            few = 5 if setup["large"] else rounds
            found[title] = measure(place, setup, pythons, limit=questions, rounds=few, threads=threads)
        lines = [line for title, cell in found.items() for line in markdown(title, cell)]
        results.write(output, found, "\n".join(lines))
        click.echo("\n".join(markdown(title, found[title])))


if __name__ == "__main__":
    main()
