"""Answers per second under load: pruned against unpruned bundles that answer 1, 4 and 8 questions at once.

    python scripts/throughput.py --image PICTURE -o docs/results/throughput          # 7B widths, 2 layers, INT8
    python scripts/throughput.py --model tiny-llava --weights auto --batch 2 --image PICTURE -o /tmp/throughput

Exports what isn't in ``--work`` yet, each batch twice: with all tokens, and with ``--ratio`` removed. The two are timed
by ``bench``, interleaved in this process, every row of the batch busy. The share of operations is that of vision,
prefill and decode steps: a step counts as one token's part of the prefill.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

import lmmprune
from lmmprune.compiler.export.export import export
from lmmprune.compiler.export.request import Request
from lmmprune.compiler.export.trace import shared_trace
from lmmprune.compiler.flops.formula import TEXT_TOKENS
from lmmprune.compiler.measure.report import Row

sys.path.insert(0, str(Path(__file__).parent))

import results

COLUMNS = ("at once", "tokens", "TTFT ms", "answers/s", "tokens/s", "ratio", "95 %", "FLOPs' ratio", "share of it")


def operations(bundle: lmmprune.Bundle, side: str, new_tokens: int) -> float:
    """Return the floating-point operations of one answer, ``before`` or ``after`` pruning."""
    manifest = bundle.manifest
    vision, prefill = (manifest.flops[part][side] for part in ("vision", "prefill"))
    length = TEXT_TOKENS + (manifest.tokens_before if side == "before" else manifest.average_tokens)
    return vision + prefill * (1 + (new_tokens - 1) / length)


def pair(paths: list[Path], image: Path, prompt: str, rounds: int, new_tokens: int, threads: int | None) -> Any:
    """Time an unpruned and a pruned bundle of one batch; return both rows and the operations' ratio."""
    report = lmmprune.bench(paths, image, prompt, rounds=rounds, new_tokens=new_tokens, threads=threads, memory=False)
    pruned = lmmprune.Bundle.open(paths[1])
    ratio = operations(pruned, "before", new_tokens) / operations(pruned, "after", new_tokens)
    return {"rows": [asdict(row) for row in report.rows], "flops_ratio": ratio}, list(report.rows), ratio


def cells(row: Row, ratio: float) -> list[str]:
    """Return a line of the table; the first of a pair has nothing to be compared with."""
    found = row.throughput
    assert found is not None
    own = [
        *(str(row.batch), f"{row.tokens_before} -> {row.image_tokens:.4g}", f"{row.times['ttft_ms'].median:.0f}"),
        *(f"{found.answers.median:.3g}", f"{found.tokens.median:.3g}"),
    ]
    if row.image_tokens == row.tokens_before:
        return [*own, "", "", "", ""]
    gain = found.ratio
    share = f"{gain.value / ratio:.2f}"
    return [*own, f"{gain.value:.2f}", f"{gain.low:.2f}-{gain.high:.2f}", f"{ratio:.2f}", share]


@click.command()
@click.option("--model", default="llava-1.5-7b", show_default=True)
@click.option("--weights", default="dummy", show_default=True, type=click.Choice(["auto", "dummy"]))
@click.option("--layers", type=int, default=2, show_default=True, help="Of the decoder, with dummy weights.")
@click.option("--method", default="divprune", show_default=True)
@click.option("--ratio", default=0.5, show_default=True)
@click.option("--batch", "batches", type=int, multiple=True, default=(1, 4, 8), show_default=True)
@click.option("--int8/--no-int8", default=True, show_default=True)
@click.option("--image", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--prompt", default="What is in the picture?", show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--new-tokens", default=4, show_default=True)
@click.option("--threads", type=int, help="Within an operator.")
@click.option("--work", type=click.Path(path_type=Path), help="Where bundles lie, and stay.  [default: a new folder]")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Writes OUTPUT.json and .md")
def main(
    *,
    model: str,
    weights: str,
    layers: int,
    method: str,
    ratio: float,
    batches: tuple[int, ...],
    int8: bool,
    image: Path,
    prompt: str,
    rounds: int,
    new_tokens: int,
    threads: int | None,
    work: Path | None,
    output: Path,
) -> None:
    """Measure."""
    folder, traced = work or Path(tempfile.mkdtemp(prefix="throughput-")), shared_trace()
    folder.mkdir(parents=True, exist_ok=True)
    lines, found = [f"| {' | '.join(COLUMNS)} |", f"|{'--:|' * len(COLUMNS)}"], []
    for batch in batches:
        paths = []
        for name, tokens in (("full", None), ("pruned", lmmprune.Ratio(ratio))):
            paths.append(folder / f"{name}-{batch}")
            if not paths[-1].is_dir():
                request = Request(
                    model=model,
                    output=paths[-1],
                    weights=weights,
                    layers=layers if weights == "dummy" else None,
                    method=method,
                    tokens=tokens,
                    int8=lmmprune.Int8(smooth=False) if int8 else None,
                    calibration_samples=2,
                    batch=batch,
                )
                export(request, traced=traced)
                click.echo(f"exported {paths[-1].name}", err=True)
        record, rows, operations_ratio = pair(paths, image, prompt, rounds, new_tokens, threads)
        found.append(record)
        for row in rows:
            lines.append(f"| {' | '.join(cells(row, operations_ratio))} |")
            click.echo(lines[-1], err=True)
    of = f"{weights} weights{f', {layers} layers' if weights == 'dummy' else ''}, {'INT8' if int8 else 'float32'}"
    facts = (
        f"{model}, {of}, {method} at {ratio}; {new_tokens} new tokens per answer; medians of {rounds} rounds,"
        " interleaved in pairs; ratio: answers per second against the unpruned bundle of the same batch."
    )
    results.write(output, found, "\n".join([*lines, "", facts]))


if __name__ == "__main__":
    main()
