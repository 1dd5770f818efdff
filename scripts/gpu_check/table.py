"""What all stages found, as Markdown."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from gpu_check.roofline import decode_giga_bytes, fraction, prefill_tera
from gpu_check.settings import LLAVA_7B

_LAYERS = ("torch-sdpa", "torch-compile", "ort-7b", "rtx-7b", "trt-7b", "cpu-7b")


def report(stages: Mapping[str, Any]) -> str:
    """Return the report; a stage that found nothing is listed with its reason."""
    return "\n".join([*_stages(stages), *_tiny(stages), *_layers(stages), *_parity(stages), *_reasons(stages)]) + "\n"


def summarize(stages: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one row per stage and variant at LLaVA-7B's width, with speed-ups and fractions of the peaks."""
    peak = _data(stages, "peak")
    torch = {
        (stages["torch-sdpa"]["layers"], row["ratio"]): row["prefill_ms"]["median"]
        for row in _data(stages, "torch-sdpa").get("rows", ())
    }
    found = []
    for stage in _LAYERS:
        rows = _data(stages, stage).get("rows", ())
        # Stages of several calls meet in one file: each has its own depth.
        layers = stages[stage]["layers"] if rows else 0
        spec = dataclasses.replace(LLAVA_7B, layers=layers)
        base = next((_median(row, "prefill_ms") for row in rows if row["variant"] == "baseline"), None)
        for row in rows:
            # A variant may have broken in one of the two.
            prefill, decode = _median(row, "prefill_ms"), _median(row, "decode_ms")
            tera = prefill and prefill_tera(spec, row["tokens"], prefill)
            giga = decode and decode_giga_bytes(spec, row["weight_bytes"], row["tokens"], decode)
            kind = "int8" if row["int8"] else "float16"
            there = torch.get((layers, row["ratio"]))
            found.append(
                {
                    "stage": stage,
                    "layers": layers,
                    "variant": row["variant"],
                    "ratio": row["ratio"],
                    "int8": row["int8"],
                    "fixed": row.get("fixed", False),
                    "tokens": row["tokens"],
                    "prefill_ms": prefill,
                    "prefill_tera": tera,
                    "prefill_fraction": fraction(tera, peak.get("tera", {}).get(kind)),
                    "decode_ms": decode,
                    "decode_giga_bytes": giga,
                    "decode_fraction": fraction(giga, peak.get("giga_bytes")),
                    "speedup": base / prefill if base and prefill else None,
                    "over_torch": there / prefill if there and prefill else None,
                }
            )
    return found


def products(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, by stage and ratio, the prefill's speed-up expected of pruning times INT8 and the one measured."""
    speedups = {(row["stage"], row["ratio"], row["int8"]): row["speedup"] for row in rows if not row["fixed"]}
    found = []
    for (stage, ratio, int8), both in speedups.items():
        parts = (speedups.get((stage, ratio, False)), speedups.get((stage, 0.0, True)))
        if int8 and ratio and both and all(parts):
            expected = parts[0] * parts[1]
            found.append({"stage": stage, "ratio": ratio, "expected": expected, "measured": both})
    return found


def _median(row: Mapping[str, Any], key: str) -> float | None:
    times = row.get(key)
    return float(times["median"]) if times else None


def _data(stages: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = stages.get(name, {}).get("data")
    return dict(found) if found else {}


def _stages(stages: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## Stages", "", "| stage | status | seconds | reason |", "|---|---|---|---|")
    for name, stage in stages.items():
        yield f"| {name} | {stage['status']} | {stage['seconds']:.1f} | {_one_line(stage.get('reason', ''))} |"
    yield ""


def _tiny(stages: Mapping[str, Any]) -> Iterator[str]:
    lines = []
    for name in stages:
        data = _data(stages, name)
        for variant, entry in data.get("variants", {}).items():
            parity, accuracy = entry.get("parity"), entry.get("accuracy")
            lines.append(
                f"| {name} | {variant} | "
                + (f"{parity['same_answers']} of {parity['questions']}" if parity else "-")
                + f" | {_number(accuracy and accuracy['accuracy'], 3)} | {entry.get('reason', '')} |"
            )
        for product in data.get("bench", {}).get("products", ()):
            lines.append(
                f"| {name} | {product['metric']} | pruning x int8 {product['expected']:.2f} expected, "
                f"{product['measured']:.2f} measured | | |"
            )
    if lines:
        yield from ("## tiny-llava", "", "| stage | variant | answers as on the CPU | accuracy | reason |")
        yield from ("|---|---|---|---|---|", *lines, "")


def _layers(stages: Mapping[str, Any]) -> Iterator[str]:
    rows = summarize(stages)
    if not rows:
        return
    yield from ("## Decoder layers at LLaVA-7B's width", "")
    yield (
        "| stage | layers | variant | tokens | prefill ms | speed-up | x torch sdpa | TFLOP/s | of peak "
        "| decode ms | GB/s | of peak |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        cells = (
            row["stage"],
            row["layers"],
            row["variant"],
            row["tokens"],
            _number(row["prefill_ms"], 3),
            _number(row["speedup"], 2),
            _number(row["over_torch"], 2),
            _number(row["prefill_tera"], 1),
            _number(row["prefill_fraction"], 2),
            _number(row["decode_ms"], 3),
            _number(row["decode_giga_bytes"], 0),
            _number(row["decode_fraction"], 2),
        )
        yield f"| {' | '.join(map(str, cells))} |"
    yield ""
    yield from _peaks(_data(stages, "peak"))
    for product in products(rows):
        yield (
            f"* {product['stage']}, ratio {product['ratio']:g}: pruning x int8 = {product['expected']:.2f} expected, "
            f"{product['measured']:.2f} measured ({product['measured'] / product['expected']:.2f} of it)."
        )
    yield ""


def _parity(stages: Mapping[str, Any]) -> Iterator[str]:
    lines = []
    for name in _LAYERS:
        for variant, parts in _data(stages, name).get("parity", {}).items():
            cells = [
                text
                for part in ("vision", "decoder")
                for text in (
                    _number(parts.get(part, {}).get("cosine"), 6),
                    _number(parts.get(part, {}).get("relative"), 6),
                )
            ]
            lines.append(f"| {name} | {stages[name]['layers']} | {variant} | {' | '.join(cells)} |")
    if lines:
        yield from (
            "## At LLaVA-7B's width, against ONNX Runtime on the CPU",
            "",
            "| stage | layers | variant | features: lowest cosine | largest relative difference "
            "| logits: lowest cosine | largest relative difference |",
            "|---|---|---|---|---|---|---|",
            *lines,
            "",
        )


def _reasons(stages: Mapping[str, Any]) -> Iterator[str]:
    lines = [
        f"| {name} | {part} | {_one_line(reason)} |"
        for name in _LAYERS
        for part, reason in _data(stages, name).get("reasons", {}).items()
    ]
    if lines:
        yield from ("## What is missing there", "", "| stage | part | reason |", "|---|---|---|", *lines, "")


def _one_line(text: object) -> str:
    """Return a table cell."""
    return " ".join(str(text).split()).replace("|", "\\|")


def _peaks(peak: Mapping[str, Any]) -> Iterator[str]:
    for source, found in (("measured", peak), ("data sheet", peak.get("known"))):
        if found:
            tera = ", ".join(f"{value:.0f} TFLOP/s {kind}" for kind, value in found.get("tera", {}).items())
            memory = _number(found.get("giga_bytes"), 0)
            yield f"* Peaks of {peak.get('gpu', 'this GPU')}, {source}: {tera}, {memory} GB/s."


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
