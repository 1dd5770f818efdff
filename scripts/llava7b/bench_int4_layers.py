"""LLaVA-7B-wide decoder layers on this CPU in float32, INT8 and INT4: prefill and decode, interleaved.

    python scripts/llava7b/bench_int4_layers.py --layers 2 --work /tmp/work -o docs/results/int4_layers

Synthetic weights at the real widths (4096/11008), and made-up ranges: times depend on shapes, not on values. All
decoders are made of one exported float32 graph and stay loaded in one process; the order within a round is drawn anew.
"""

from __future__ import annotations

import platform
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import click
import onnx_ir as ir
import onnxruntime as ort
from bench_llava7b_layers import interleaved, variant
from layers.engines import decoder_runs, load
from layers.table import Times, speedup

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.flops.formula import TEXT_TOKENS
from lmmprune.compiler.lower.lower import lower
from lmmprune.compiler.onnx_files.load_onnx import load_onnx
from lmmprune.compiler.targets import machine
from lmmprune.compiler.targets.targets import TARGETS
from lmmprune.passes.int4.insert_int4 import InsertInt4
from lmmprune.passes.int8.insert_qdq import InsertQdq, activations

sys.path.insert(0, str(Path(__file__).parents[1]))  # scripts/, where results.py lies

import results


def int4(group: int) -> Callable[[ir.Model], None]:
    """Return what turns a decoder's weights into four bits, as ``export --int4`` does for ort-cpu."""

    def change(model: ir.Model) -> None:
        InsertInt4(group=group)(model)
        lower(model, TARGETS["ort-cpu"])

    return change


def int8(scheme: str) -> Callable[[ir.Model], None]:
    """Return what turns a decoder into INT8."""

    def change(model: ir.Model) -> None:
        InsertQdq(scheme=scheme, ranges=dict.fromkeys(activations(model, scheme), (-4.0, 4.0)))(model)

    return change


FLOAT, INT8 = "float32", "INT8"
FORMS: Mapping[str, Callable[[ir.Model], None] | None] = MappingProxyType(
    {
        FLOAT: None,
        INT8: int8("u8s8"),
        "INT8 weights only": int8("s8-weights"),
        "INT4, groups of 128": int4(128),
        "INT4, groups of 64": int4(64),
        "INT4, groups of 32": int4(32),
    }
)


def graph(bundle: Bundle, name: str) -> Path:
    """Write the decoder in one form beside the bundle, unless it is there; return its file."""
    change = FORMS[name]
    if change is None:
        return bundle.decoder
    path = bundle.path.with_name(f"{name.replace(' ', '_').replace(',', '')}") / "decoder.onnx"
    if not path.is_file():
        click.echo(f"write {name}", err=True)
        path.parent.mkdir(exist_ok=True)
        model = load_onnx(bundle.decoder)
        change(model)
        ir.save(model, path, external_data="decoder.onnx.data")
    return path


def table(what: str, times: Times, sizes: Mapping[str, int]) -> list[str]:
    """Return one table: medians, and how many times faster than float32 and than INT8 within each round."""
    lines = [f"## {what}", "", "| weights | MB | ms | than float32 | than INT8 |", "|---|---|---|---|---|"]
    for name, row in times.items():
        faster = [f"{speedup(times[base], row):.2f}x" for base in (FLOAT, INT8)]
        lines.append(f"| {name} | {sizes[name] / 1e6:.0f} | {statistics.median(row):.1f} | {' | '.join(faster)} |")
    return [*lines, ""]


@click.command()
@click.option("--layers", default=2, show_default=True)
@click.option("--tokens", "counts", multiple=True, type=int, default=(576, 288), show_default=True)
@click.option("--rounds", default=10, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for the graphs, 8 GB.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("docs/results/int4_layers"), show_default=True
)
def main(layers: int, counts: tuple[int, ...], rounds: int, threads: int, work: Path, output: Path) -> None:
    """Write OUTPUT.json and OUTPUT.md."""
    work.mkdir(parents=True, exist_ok=True)
    bundle = variant(work, "baseline", layers)
    files = {name: graph(bundle, name) for name in FORMS}
    sizes = {name: file.with_name(f"{file.name}.data").stat().st_size for name, file in files.items()}
    sessions = {name: load(file, threads) for name, file in files.items()}
    data: dict[str, object] = {"layers": layers, "threads": threads, "rounds": rounds, "bytes": sizes}
    lines: list[str] = []
    for tokens in counts:
        length = tokens + TEXT_TOKENS
        runs = {name: decoder_runs(session, bundle, length) for name, session in sessions.items()}
        prefill = interleaved({name: [first] for name, (first, _) in runs.items()}, rounds)
        decode = interleaved({name: [second] for name, (_, second) in runs.items()}, 4 * rounds)
        data[f"tokens_{tokens}"] = {"prefill_ms": prefill, "decode_ms": decode}
        lines += table(f"{tokens} visual tokens: prefill of {length}", prefill, sizes)
        lines += table(f"{tokens} visual tokens: a decode step behind it", decode, sizes)
    lines.append(
        f"{layers} decoder layers with table and lm_head, {threads} threads, {rounds} rounds (decode: {4 * rounds}), "
        f"{machine.detect_machine().processor}, {platform.system()}, onnxruntime {ort.__version__}; ratios are medians "
        "of the ratio within a round."
    )
    text = "\n".join(lines) + "\n"
    results.write(output, data, text)
    click.echo(text)


if __name__ == "__main__":
    main()
