"""Bundles whose files lead out of them, and names and links that would let a command write elsewhere."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults.command_line import call, fault_of
from faults.tally import OUTSIDE, SILENT, Row, Rows, while_time_lasts

_WAYS = ("../{}", "/{}", "a/../../{}", "./../{}", "engines/../../{}")


def run(seconds: float, seed: int) -> list[Row]:
    """Draw an attack and a command, until the time is over."""
    import runtime_fixtures as fx

    draw, rows = random.Random(seed), Rows("containment")
    root = Path(tempfile.mkdtemp())
    made = fx.make_bundle(root / "made", keep=4).path
    picture = fx.save_picture(root / "p.png", 3)
    attacks: dict[str, Callable[[Path, random.Random], object]] = {
        "a file is a link": _link,
        "a file is a pipe": _pipe,
        "weights lie elsewhere": _weights,
        "the manifest lists a file elsewhere": _listed,
        "a bucket's name is a path": _bucket,
    }
    for number in while_time_lasts(seconds, at_least=4 * len(attacks)):
        kind = [*attacks][number % len(attacks)]
        work = root / "work"
        shutil.copytree(made, work / "out")
        words = attacks[kind](work / "out", draw)
        command = draw.choice(
            [
                ("run", work / "out", "--image", picture, "--prompt", "hi", "--max-new-tokens", "2"),
                ("inspect", work / "out"),
                ("show", work / "out", "--image", picture, "-o", work / "x.png"),
                ("build", work / "out", "--triton", work / "served"),
                ("flops", work / "out"),
            ]
        )
        before = _outside(work)
        called = call(*command)
        fault = fault_of(called, must_refuse=True)
        if _outside(work) != before or fault == SILENT:
            fault = OUTSIDE
        rows[kind].count(fault, f"{command[0]} with {words}: exit {called.code}, {called.err[-200:]}")
        shutil.rmtree(work)
    shutil.rmtree(root)
    return rows.list()


def _outside(work: Path) -> list[str]:
    """Return the names of all that lies beside the bundle, and below the folder that holds all."""
    return sorted(str(path) for path in work.parent.rglob("*") if work / "out" not in path.parents)


def _elsewhere(bundle: Path, draw: random.Random) -> str:
    return draw.choice(_WAYS).format(draw.choice(["secret", "made/decoder.data", "x/y"])).replace("//", "/")


def _link(bundle: Path, draw: random.Random) -> object:
    name = draw.choice(["manifest.json", "tokenizer.json", "preprocessor.json", "decoder.onnx", "decoder.data"])
    os.replace(bundle / name, bundle.parent / name)
    # Directly, or by way of a directory that is a link.
    if draw.random() < 0.5:
        (bundle / name).symlink_to(bundle.parent / name)
    else:
        (bundle / "d").symlink_to(bundle.parent)
        (bundle / name).symlink_to(f"d/{name}")
    return name


def _pipe(bundle: Path, draw: random.Random) -> object:
    name = draw.choice(["manifest.json", "tokenizer.json", "decoder.onnx", "decoder.data"])
    (bundle / name).unlink()
    os.mkfifo(bundle / name)
    return name


def _weights(bundle: Path, draw: random.Random) -> object:
    import onnx

    location = _elsewhere(bundle, draw)
    target = (bundle / location.lstrip("/")).resolve() if not location.startswith("/") else None
    if target is not None and target.is_relative_to(bundle.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle / "decoder.data", target)
    model = onnx.load(bundle / "decoder.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    onnx.save(model, bundle / "decoder.onnx")
    _seal(bundle)
    return location


def _listed(bundle: Path, draw: random.Random) -> object:
    name = _elsewhere(bundle, draw)
    _seal(bundle, lambda raw: raw["files"].update({name: {"bytes": 1, "sha256": "0" * 64}}))
    return name


def _bucket(bundle: Path, draw: random.Random) -> object:
    name = _elsewhere(bundle, draw)
    _seal(bundle, lambda raw: raw.update(buckets=[{"tokens": f"/{name}", "graph": raw["vision"]}]))
    return name


def _seal(bundle: Path, change: Callable[[dict[str, Any]], object] = lambda raw: None) -> None:
    """Edit the manifest, let it say that all files are what they should be, and seal it."""
    from edit_json import edit

    from lmmprune.compiler.bundle.bundle import file_sha256

    def all_of_it(raw: dict[str, Any]) -> None:
        for name in raw["files"]:
            size = (bundle / name).stat().st_size
            raw["files"][name] = {"bytes": size, "sha256": file_sha256(bundle / name)}
        change(raw)

    edit(bundle / "manifest.json", all_of_it)
