"""``lmmprune export``: the main job."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmmprune.compiler.bundle.manifest import Manifest, ScheduledSite
from lmmprune.compiler.bundle.views import counts_of_sizes
from lmmprune.compiler.cli.command import Command
from lmmprune.compiler.cli.export_options import check_export_options, export_options
from lmmprune.compiler.cli.loss_line import loss_line
from lmmprune.compiler.cli.options import check_triton
from lmmprune.compiler.cli.output import note, print_json, show, warn
from lmmprune.compiler.cli.progress import steps
from lmmprune.compiler.cli.table import table
from lmmprune.compiler.cli.values import set_options
from lmmprune.compiler.export.values import (
    ALL_TILES,
    Auto,
    Buckets,
    Int4,
    Int8,
    Keep,
    Ratio,
    Schedule,
    Tiles,
    Tokens,
)
from lmmprune.errors import InputError, require
from lmmprune.units import human_bytes, human_si

if TYPE_CHECKING:
    from lmmprune.compiler.export.dynamic_counts import DynamicCounts


def _number(option: str, text: str | None) -> float:
    try:
        return float(text or "")
    except ValueError as error:
        raise InputError(
            f"{option} {text}: expected a number, 0 <= R < 1{', or auto' * (option == '--ratio')}"
        ) from error


def _pixels(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise InputError(f"--image-size {text}: expected pixels, such as 448, or height x width, such as 448x672")
    return int(sides[0]), int(sides[-1])


def _tiles(text: str) -> Tiles:
    if text == ALL_TILES:
        return ALL_TILES
    found = [re.fullmatch(r"([1-9][0-9]?)x([1-9][0-9]?)", part) for part in text.split(",")]
    if not all(found):
        raise InputError(f"--tiles {text}: expected rows x columns, such as 2x2 or 1x1,2x2, or all")
    return tuple((int(part[1]), int(part[2])) for part in found if part)


def _tokens(
    ratio: str | None, keep: int | None, buckets: str | None, schedule: Path | None, percentile: float
) -> Tokens | None:
    given = {
        "--ratio": ratio is not None,
        "--keep": keep is not None,
        "--buckets": bool(buckets),
        "--schedule": schedule is not None,
    }
    if len(named := [name for name, there in given.items() if there]) > 1:
        raise InputError(f"{' and '.join(named)} exclude each other: give one")
    if keep is not None:
        return Keep(keep)
    if schedule is not None:
        return Schedule.read(schedule)
    if buckets:
        return Buckets(_number("--buckets", part) for part in buckets.split(","))
    if ratio == "auto":
        return Auto(percentile)
    return None if ratio is None else Ratio(_number("--ratio", ratio))


def _integers(options: dict[str, Any]) -> dict[str, Int8 | Int4 | None]:
    """Take the options that say how to quantize out of the others, and make the request's fields of them."""
    static, weights_only, dynamic = (options.pop(f"int8{kind}") for kind in ("", "_weights_only", "_dynamic"))
    four, group, method, vision = (options.pop(name) for name in ("int4", "int4_group", "int4_method", "int8_vision"))
    chosen = {name: options.pop(f"int4_{name}") for name in ("policy", "budget")}
    how = {
        "policy": options.pop("int8_policy"),
        "budget": options.pop("int8_budget"),
        **{name: options.pop(name) for name in ("keep_float", "smooth", "calibrator")},
    }
    kinds = {"--int8": static, "--int8-weights-only": weights_only, "--int8-dynamic": dynamic, "--int4": four}
    given = [name for name, wanted in kinds.items() if wanted]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} exclude each other, each is a way to quantize: give one")
    if four:
        blocks = how.pop("keep_float")
        # Without --int8-vision, a block of the tower is refused where the others are looked at.
        inside = tuple(name for name in blocks if vision and name.startswith("vision:"))
        tower = Int8(keep_float=inside, **how) if vision else None
        rest = tuple(name for name in blocks if name not in inside)
        return {"int4": Int4(group=group, method=method, keep_float=rest, vision=tower, **chosen), "int8": None}
    return {"int8": Int8(weights_only=weights_only, dynamic=dynamic, **how) if given else None}


@click.command("export", cls=Command, example="lmmprune export --model tiny-llava --ratio 0.5 --int8 -o out/")
@export_options
def command(
    *,
    pairs: tuple[str, ...],
    ratio: str | None,
    buckets: str | None,
    schedule: Path | None,
    calib: Path | None,
    calib_samples: int,
    image_size: tuple[str, ...],
    tiles: str | None,
    triton: Path | None,
    triton_backend: str,
    as_json: bool,
    **request: object,
) -> None:
    """Export a model: prune visual tokens, optionally quantize, and write a bundle."""
    require("onnx_ir", "export")
    from lmmprune.compiler.export.export import export
    from lmmprune.compiler.export.request import STREAMS, Request

    options = set_options(pairs)
    check_export_options(ratio, buckets, schedule, request)
    output: Path = request["output"]  # type: ignore[assignment]  # click's own conversion
    force: bool = request["force"]  # type: ignore[assignment]  # same
    dtype, cache = request["dtype"], request["static_cache"]
    check_triton(output, triton, triton_backend, request["target"], dtype, cache, force=force)  # type: ignore[arg-type]  # same
    tokens = _tokens(ratio, request.pop("keep"), buckets, schedule, request.pop("percentile"))  # type: ignore[arg-type]  # same
    integers = _integers(request)
    with steps(streams=STREAMS) as step:
        report = export(
            Request(
                options=options,
                tokens=tokens,
                **integers,  # type: ignore[arg-type]  # each of its own kind
                calibration=calib,
                calibration_samples=calib_samples,
                image_size=tuple(_pixels(text) for text in image_size) or None,
                tiles=None if tiles is None else _tiles(tiles),
                **request,  # type: ignore[arg-type]  # click's names are Request's
            ),
            step,
            announce=note,
        )
    manifest = report.manifest
    if triton is not None:
        from lmmprune.compiler.bundle.bundle import Bundle
        from lmmprune.compiler.triton.repository import write_repository

        repository = write_repository(Bundle.open(output), triton, backend=triton_backend, force=force)
    for warning in report.warnings:
        warn(warning)
    if stayed := _in_float(manifest):
        note(f"kept in floating point: {', '.join(stayed)}")
    if (lost := loss_line(manifest, output, calib)) is not None:
        note(lost)
    if report.counts:
        note(_dynamic_counts(report.counts, manifest))
    data = {
        "bundle": str(output),
        "sites": [dataclasses.asdict(stage) for stage in manifest.schedule],
        "method": manifest.method,
        "images": manifest.images,
        "joint": manifest.joint,
        "tile_grids": manifest.tile_grids.names if manifest.tile_grids else [],
        "frames": None if manifest.video is None else manifest.video.frames,
        "tokens_before": manifest.tokens_before,
        "average_tokens": manifest.average_tokens,
        "parameters": dict(manifest.parameters),
        "precision": dataclasses.asdict(manifest.precision),
        "target": manifest.target,
        "flops": {part: dict(row) for part, row in manifest.flops.items()},
        "bytes": {name: entry.bytes for name, entry in manifest.files.items()},
        "seconds": round(report.seconds, 3),
        "steps": dict(report.steps),
        "peak_bytes": report.peak_bytes,
        "warnings": list(report.warnings),
        "loss": None if manifest.loss is None else dataclasses.asdict(manifest.loss),
        "buckets": [bucket.tokens for bucket in manifest.buckets],
        "sizes": {view.name: [view.tokens_before, view.image_tokens] for view in manifest.sizes},
        "dynamic_counts": list(report.counts.counts) if report.counts else None,
        "triton": None if triton is None else str(triton),
    }
    if as_json:
        print_json(data)
        return
    rows = _site_rows(manifest.schedule)
    for part, label in (("vision", "vision FLOPs"), ("prefill", "prefill FLOPs")):
        before, after = manifest.flops[part]["before"], manifest.flops[part]["after"]
        rows.append([label, human_si(before), human_si(after), _ratio(after, before)])
    size = sum(entry.bytes for entry in manifest.files.values())
    precision = " + ".join(filter(None, (manifest.precision.dtype, manifest.precision.integers)))
    average = f"{manifest.average_tokens:.1f}".removesuffix(".0")
    method = f"{manifest.method}, " if manifest.method else "not pruned, "
    show(
        table(
            ["", "before", "after", "ratio"], rows, title=f"{manifest.model}: {method}{precision}, {manifest.target}"
        ),
        f"{_counts(manifest, average)} visual tokens{_spread(manifest)}{manifest.whose_tokens};"
        f" {human_bytes(size)}"
        f" in '{output}';"
        f" {report.seconds:.1f} s; peak memory {human_bytes(report.peak_bytes)}",
    )
    if triton is not None:
        show(repository.line)


# More sites than this are shown as the first, some dots and the last.
_ROWS = 8


def _site_rows(schedule: tuple[ScheduledSite, ...]) -> list[list[str]]:
    rows = [
        [
            f"tokens at {stage.site}",
            str(stage.tokens_in),
            str(stage.tokens_out),
            _ratio(stage.tokens_out, stage.tokens_in),
        ]
        for stage in schedule
    ]
    return rows if len(rows) <= _ROWS else [rows[0], [f"... {len(rows) - 2} more sites", "", "", ""], rows[-1]]


def _in_float(manifest: Manifest) -> list[str]:
    """Return the blocks that INT8 left alone, as --keep-float takes them."""
    record = manifest.precision.calibration or {}
    whose = {"vision": "vision", "bucket": "vision", "decoder": "decoder"}
    return [f"{name}:{block}" for part, name in whose.items() for block in record.get(part, {}).get("float", ())]


def _counts(manifest: Manifest, average: str) -> str:
    return counts_of_sizes(manifest) or f"{manifest.tokens_before} -> {average}"


def _spread(manifest: Manifest) -> str:
    return " per decoder layer on average" if any(stage.in_decoder for stage in manifest.schedule) else ""


def _dynamic_counts(found: DynamicCounts, manifest: Manifest) -> str:
    low, high = min(found.counts), max(found.counts)
    said = f"{found.method} itself would keep {low} to {high} of {found.tokens} patches of {len(found.counts)} pictures"
    if manifest.buckets:
        sizes = ", ".join(str(bucket.tokens) for bucket in manifest.buckets)
        largest = manifest.buckets[-1].tokens
        short = sum(count > largest for count in found.counts)
        return (
            f"{said}; buckets {sizes}; {short} of them need more than {largest} and get the largest (token_counts.png)"
        )
    return f"{said}; {found.percentile:g} % need {found.keep} or fewer (token_counts.png)"


def _ratio(after: float, before: float) -> str:
    return f"{after / before:.3f}"
