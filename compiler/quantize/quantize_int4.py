"""INT4 for the decoder: round its weights, on samples where that was asked for, and write integers."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx_ir as ir

from lmmprune.compiler.bundle.interface import SELECTION, Interface
from lmmprune.compiler.data.calibration import CalibrationSet
from lmmprune.compiler.quantize.feeds import SampleFeeds
from lmmprune.compiler.quantize.int4_plan import Int4Plan
from lmmprune.compiler.quantize.quantize import write_to_run
from lmmprune.compiler.quantize.round_by_layer import round_by_layer
from lmmprune.compiler.quantize.rounded import FOLDER, Rounded
from lmmprune.errors import below
from lmmprune.passes.int4.insert_int4 import InsertInt4
from lmmprune.progress import Progress, step


@below("rounding to four bits", "try --int4-method rtn, which runs nothing")
def quantize_int4(
    vision: ir.Model,
    decoder: ir.Model,
    selection: ir.Model | None,
    interface: Interface,
    assets: Path,
    data: CalibrationSet | None,
    plan: Int4Plan,
    progress: Progress,
    *,
    dtype: str,
    check: Callable[[], None],
) -> None:
    """Quantize the decoder in place; what was rounded on samples lies in ``FOLDER`` until the bundle is written.

    Args:
        vision: Pruned float32 graph; stays as it is.
        decoder: Pruned float32 graph, whose cache grows.
        selection: What chooses between them, float32; stays as it is.
        interface: How they are run.
        assets: Directory with the tokenizer and the preprocessor.
        data: What to run; None for a method that runs nothing.
        plan: How.
        progress: Called with what is done, how much of it, and how much there is.
        dtype: Floating-point type that the decoder is cast to later.
        check: Called when weights have been read.
    """
    rounded: Mapping[str, Rounded] = {}
    if plan.calibrated and data is not None:
        folder = assets / FOLDER
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        # Within the bundle in the making: a place with room for the weights, which /tmp need not be.
        with tempfile.TemporaryDirectory(dir=assets, prefix="calibration.") as name:
            work = Path(name)
            with step(progress, "write float vision"):
                graph = write_to_run(vision, work / "vision.onnx")
                chooser = None if selection is None else write_to_run(selection, work / f"{SELECTION}.onnx")
                check()
            layout = interface.cache
            pairs = zip(layout.past, layout.present, strict=True)
            rounded = round_by_layer(
                decoder,
                SampleFeeds(interface, assets, data, graph, chooser).script(),
                folder,
                group=plan.group,
                dtype=dtype,
                keep_float=plan.kept,
                cache={name: out for past, present in pairs for name, out in zip(past, present, strict=True)},
                empty=(1, layout.kv_heads, 0, layout.head_dim),
                check=check,
                done=functools.partial(progress, "round decoder, layers"),
            )
    InsertInt4(group=plan.group, dtype=dtype, whole=plan.whole, keep_float=plan.kept, rounded=rounded)(decoder)


def forget_rounded(directory: Path) -> None:
    """Remove what the weights of a finished bundle were read from."""
    shutil.rmtree(directory / FOLDER, ignore_errors=True)
