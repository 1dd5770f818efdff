"""What a bundle is, by its manifest: model, tokens, method, numbers, files, how it is run."""

from __future__ import annotations

import importlib.util
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmmprune.compiler.bundle.bundle import ENGINES, Bundle
from lmmprune.compiler.bundle.engines import EngineRecord, read_records
from lmmprune.compiler.bundle.manifest import Manifest, ModelSource
from lmmprune.compiler.card.markdown import bullets, code, number, paper, plain, table
from lmmprune.compiler.targets.targets import TARGETS
from lmmprune.errors import one_line
from lmmprune.units import human_bytes, human_si

_DUMMY = "made up: it measures speed and size only, its answers mean nothing"


def engines(bundle: Bundle) -> list[EngineRecord]:
    """Return the records of all engines of a bundle."""
    folders = sorted(folder for folder in (bundle.path / ENGINES).glob("*") if folder.is_dir())
    return [record for folder in folders for record in read_records(folder).values()]


def title(bundle: Bundle) -> str:
    """Return the bundle in one line."""
    manifest = bundle.manifest
    kept = f"{number(manifest.average_tokens)} of {manifest.tokens_before} visual tokens by {plain(manifest.method)}"
    pruned = kept if manifest.method is not None else f"all {manifest.tokens_before} visual tokens"
    return f"{plain(manifest.model)}: {pruned}, {precision(manifest)}, for {plain(manifest.target)}"


def precision(manifest: Manifest) -> str:
    """Return the numbers that a bundle computes with, in words."""
    kept = manifest.precision
    if (own := kept.carried) is not None:
        groups = "one scale for an output" if own.group is None else f"groups of {own.group}"
        return f"INT{own.bits} ({groups}, the decoder's weights, as {own.method} made them) and {kept.dtype}"
    four = f"INT4 (groups of {kept.group}, the decoder's weights)" if kept.int4 else None
    eight = f"INT8 ({kept.int8}{', the vision tower' if four else ''})" if kept.int8 else None
    return " and ".join(filter(None, (four, eight, kept.dtype)))


def what_it_is(bundle: Bundle) -> list[str]:
    """Return the section on model and origin."""
    manifest = bundle.manifest
    rows = [
        ["model", f"{plain(manifest.model)}, family {code(manifest.family)}"],
        ["weights", _source(manifest.source) if manifest.weights == "checkpoint" else _DUMMY],
        *([["adapter", f"{_source(manifest.adapter)}, merged"]] if manifest.adapter else []),
        ["made for", _target(manifest)],
        ["made", f"{plain(manifest.created)} with {_tools(manifest)}"],
        ["SHA-256 of all files", code(bundle.sha256)],
    ]
    return ["## What it is", "", *table(["", ""], rows)]


def _source(source: ModelSource) -> str:
    revision = f", revision {code(source.revision)}" if source.revision else ""
    digest = f", digest {code(source.digest)}" if source.digest else ""
    return f"{source.kind} {code(source.name)}{revision}{digest}"


def _target(manifest: Manifest) -> str:
    known = TARGETS.get(manifest.target)
    return f"{known.title} ({code(manifest.target)}), ONNX opset {manifest.opset}" if known else code(manifest.target)


def _tools(manifest: Manifest) -> str:
    return ", ".join(f"{plain(name)} {plain(version)}" for name, version in manifest.tools.items()) or "tools unknown"


def tokens(bundle: Bundle) -> list[str]:
    """Return the section on where visual tokens are cut, and by what."""
    manifest = bundle.manifest
    each = f" So many{manifest.whose_tokens}." if manifest.whose_tokens else ""
    if manifest.method is None:
        return ["## Tokens", "", f"Nothing is pruned: all {manifest.tokens_before} visual tokens stay.{each}", ""]
    head = f"{number(manifest.average_tokens)} of {manifest.tokens_before} visual tokens per decoder layer, on average."
    rows = [
        [code(site.site), str(site.tokens_in), str(site.tokens_out), str(site.text_removed)]
        for site in manifest.schedule
    ]
    buckets = [f"One of {[bucket.tokens for bucket in manifest.buckets]} per picture, chosen by what it holds.", ""]
    return [
        "## Tokens",
        "",
        head + each,
        "",
        *table(["cut at", "tokens in", "tokens out", "of the question"], rows),
        *(buckets if manifest.buckets else []),
        f"Positions: {manifest.positions} at the decoder's input, {manifest.llm_positions} behind cuts inside of it.",
        "",
        "## Method",
        "",
        *bullets(_method(manifest)),
    ]


def _method(manifest: Manifest) -> list[str]:
    found = [f"{code(manifest.method)}"]
    if manifest.parameters:
        chosen = ", ".join(code(f"{name}={value}") for name, value in manifest.parameters.items())
        found.append(f"Parameters: {chosen}")
    if importlib.util.find_spec("onnx_ir") is None:
        return [*found, f"Paper: {code(f'lmmprune methods {manifest.method}')} says it, with the extra 'export'"]
    from lmmprune.passes.methods import find_methods

    known = find_methods().get(str(manifest.method))
    if known is None:
        return [*found, "Paper: unknown here, it is a method from outside"]
    return [*found, f"Paper: {paper(known.reference)}", f"What is exact: {plain(known.exactness)}"]


def numbers(bundle: Bundle) -> list[str]:
    """Return the section on types, INT8, cost and size."""
    manifest = bundle.manifest
    rows = [["computes in", precision(manifest)]]
    if manifest.precision.int8 and not manifest.precision.carried:
        rows.append(["calibrated on", _calibration(manifest.precision.calibration or {})])
    for name, words in (("vision", "vision tower"), ("prefill", "decoder's prefill")):
        if cost := manifest.flops.get(name):
            rows.append(
                [f"FLOPs of the {words}", f"{human_si(cost['before'])} before, {human_si(cost['after'])} after"]
            )
    rows.append(["graphs with weights", human_bytes(bundle.bytes)])
    built = [
        f"{code(f'{one.target} {one.arch}')} {one.component}: {human_bytes(one.bytes)}, {plain(one.builder)}"
        f" {plain(one.version)}"
        for one in engines(bundle)
    ]
    listed = sorted(manifest.files.items())
    files = [[code(name), human_bytes(entry.bytes), code(entry.sha256)] for name, entry in listed]
    return [
        "## Numbers and size",
        "",
        *table(["", ""], rows),
        *(["Engines:", "", *bullets(built)] if built else []),
        *table(["file", "size", "SHA-256"], files),
    ]


def _calibration(found: Mapping[str, Any]) -> str:
    words = [f"{found['samples']} samples of {plain(found['source'])}"] if "samples" in found else []
    words += [f"{name} {plain(found[name])}" for name in ("method", "policy") if isinstance(found.get(name), str)]
    return ", ".join(words) or "nothing: its scheme takes no samples"


def how_to_run(bundle: Bundle) -> list[str]:
    """Return the section with commands to copy."""
    manifest, folder = bundle.manifest, one_line(Path(bundle.path).resolve().name)
    name = shlex.quote(folder)
    known = TARGETS.get(manifest.target)
    extra = known.extra if known else "cpu"
    build = [f"lmmprune build {name} --target {manifest.target}"] if known and known.trtexec else []
    commands = [
        f"pip install 'lmmprune[{extra}]'",
        *build,
        f'lmmprune run {name} --image photo.jpg --prompt "What is in the picture?"',
    ]
    python = [
        "import lmmprune",
        "",
        f"with lmmprune.load({json.dumps(folder)}) as model:",
        '    print(model.ask("photo.jpg", "What is in the picture?").text)',
    ]
    needs = [f"Needs {known.requires}.", ""] if known else []
    return ["## How to run it", "", *needs, *_block("sh", commands), *_block("python", python)]


def _block(language: str, lines: list[str]) -> list[str]:
    return [f"```{language}", *lines, "```", ""]
