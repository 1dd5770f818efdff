"""``lmmprune export``: the main job."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from lmmprune.compiler.cli.output import human_bytes, json_option, note, print_json, progress, show, table
from lmmprune.errors import InputError


def _options(pairs: tuple[str, ...]) -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            raise InputError(f"--set {pair}: expected name=value")
    return dict(pair.split("=", 1) for pair in pairs)


@click.command()
@click.option("--model", required=True, help="Alias (see 'lmmprune models'), hub id, or local directory.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Directory for the bundle.")
@click.option("--method", default="freepruner", show_default=True, help="Selection method (see 'lmmprune methods').")
@click.option("--set", "pairs", multiple=True, metavar="NAME=VALUE", help="A hyper-parameter of the method.")
@click.option("--ratio", type=float, help="Fraction of visual tokens removed, 0 <= R < 1  [default: 0, not pruned]")
@click.option("--keep", type=int, help="Number of visual tokens that stay, instead of --ratio.")
@click.option("--int8", is_flag=True, help="Quantize to INT8, calibrated on the pruned graph.")
@click.option("--calib", type=click.Path(path_type=Path), help="Pictures (directory) or image+prompt pairs (jsonl).")
@click.option("--calib-samples", type=click.IntRange(min=1), default=32, show_default=True, help="Samples at most.")
@click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), help="[default: the target's]")
@click.option("--target", default="ort-cpu", show_default=True, help="Where it will run (see 'lmmprune targets').")
@click.option("--positions", type=click.Choice(["contiguous", "original"]), help="[default: the method's]")
@click.option("--weights", type=click.Choice(["auto", "dummy"]), default="auto", help="'dummy': synthetic weights.")
@click.option("--layers", type=int, help="Keep only so many decoder layers (with --weights dummy).")
@json_option
def command(
    *, pairs: tuple[str, ...], calib: Path | None, calib_samples: int, as_json: bool, **request: object
) -> None:
    r"""Export a model: prune visual tokens, optionally quantize, and write a bundle.

    \b
    lmmprune export --model tiny-llava --ratio 0.5 --int8 -o out/
    """
    from lmmprune.compiler.export import Request, export

    with progress() as bar:
        tasks: dict[str, object] = {}

        def step(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=of)
            bar.update(tasks[what], completed=done, total=of)  # type: ignore[arg-type]  # rich's own TaskID

        report = export(
            Request(options=_options(pairs), calibration=calib, calibration_samples=calib_samples, **request),  # type: ignore[arg-type]  # click's names are Request's
            step,
        )
    manifest = report.manifest
    for warning in report.warnings:
        note(f"warning: {warning}")
    data = {
        "bundle": str(request["output"]),
        "sites": [dataclasses.asdict(stage) for stage in manifest.schedule],
        "method": manifest.method,
        "parameters": dict(manifest.parameters),
        "precision": dataclasses.asdict(manifest.precision),
        "target": manifest.target,
        "flops": {part: dict(row) for part, row in manifest.flops.items()},
        "bytes": {name: entry.bytes for name, entry in manifest.files.items()},
        "seconds": round(report.seconds, 3),
        "peak_bytes": report.peak_bytes,
        "warnings": list(report.warnings),
    }
    if as_json:
        print_json(data)
        return
    rows = [
        [
            f"tokens at {stage.site}",
            str(stage.tokens_in),
            str(stage.tokens_out),
            _ratio(stage.tokens_out, stage.tokens_in),
        ]
        for stage in manifest.schedule
    ]
    for part, label in (("vision", "vision FLOPs"), ("prefill", "prefill FLOPs")):
        before, after = manifest.flops[part]["before"], manifest.flops[part]["after"]
        rows.append([label, _flops(before), _flops(after), _ratio(after, before)])
    size = sum(entry.bytes for entry in manifest.files.values())
    precision = manifest.precision.dtype + (f" + int8 ({manifest.precision.int8})" if manifest.precision.int8 else "")
    stage = manifest.schedule[0]
    method = f"{manifest.method}, " if manifest.method else "not pruned, "
    show(
        table(
            ["", "before", "after", "ratio"], rows, title=f"{manifest.model}: {method}{precision}, {manifest.target}"
        ),
        f"{stage.tokens_in} -> {stage.tokens_out} visual tokens; {human_bytes(size)} in '{request['output']}';"
        f" {report.seconds:.1f} s; peak memory {human_bytes(report.peak_bytes)}",
    )


def _ratio(after: float, before: float) -> str:
    return f"{after / before:.3f}"


def _flops(count: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f}"
