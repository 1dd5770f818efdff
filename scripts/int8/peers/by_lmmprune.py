"""Quantize with ours."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.data.calibration import load_calibration
from lmmprune.compiler.quantize.int8_plan import Int8Plan
from lmmprune.compiler.quantize.quantize import quantize
from lmmprune.models.source import resolve
from peers.tools import PARTS, Done, Tool, setup_of


def run(work: Path, folder: Path, tool: Tool, done: Done) -> None:
    """Write both graphs with the scheme of ``tool``."""
    setup = setup_of(work)
    source = resolve(setup["model"], weights=setup["weights"], layers=setup["layers"])
    data = None if tool.dynamic else load_calibration(source, None, setup["samples"])
    bundle = Bundle.open(work / "float")
    graphs = {"vision": ir.load(bundle.vision), "decoder": ir.load(bundle.decoder)}
    plan = Int8Plan(scheme=tool.scheme, smooth=tool.smooth)
    quantize(**graphs, interface=bundle.manifest, assets=bundle.path, data=data, plan=plan, cache=folder / "cache")
    for part in PARTS:
        ir.save(graphs[part], folder / f"{part}.onnx", external_data=f"{part}.onnx.data")
        done(part, "")
