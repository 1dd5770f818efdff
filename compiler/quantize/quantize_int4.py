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
from lmmprune.compiler.quantize.sensitivity import Sensitivity, scan_blocks
from lmmprune.errors import below
from lmmprune.passes.int4.insert_int4 import InsertInt4, groupable
from lmmprune.progress import Progress, step


@below("rounding to four bits", "try --int4-method rtn without --int4-policy, which runs nothing")
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
) -> Sensitivity | None:
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

    Returns:
        What a scan for blocks that stay in float found; None: there was none.
    """
    rounded: Mapping[str, Rounded] = {}
    seen = None
    if plan.calibrated and data is not None:
        # Within the bundle in the making: a place with room for the weights, which /tmp need not be.
        with tempfile.TemporaryDirectory(dir=assets, prefix="calibration.") as name:
            work = Path(name)
            with step(progress, "write float vision"):
                graph = write_to_run(vision, work / "vision.onnx")
                chooser = None if selection is None else write_to_run(selection, work / f"{SELECTION}.onnx")
                check()
            feeds = SampleFeeds(interface, assets, data, graph, chooser)
            if plan.rounds:
                rounded = _round(decoder, feeds, interface, assets, plan, progress, dtype=dtype, check=check)
            if plan.policy == "auto":
                with step(progress, "write float decoder"):
                    whole = write_to_run(decoder, work / "decoder.onnx")
                    check()
                seen = _scan(whole, feeds, plan, rounded, progress)
    keep = plan.kept | set(() if seen is None else seen.keep_float)
    InsertInt4(group=plan.group, dtype=dtype, whole=plan.whole, keep_float=keep, rounded=rounded)(decoder)
    return seen


def _round(
    decoder: ir.Model,
    feeds: SampleFeeds,
    interface: Interface,
    assets: Path,
    plan: Int4Plan,
    progress: Progress,
    *,
    dtype: str,
    check: Callable[[], None],
) -> Mapping[str, Rounded]:
    """Round the decoder's weights on samples."""
    folder = assets / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    layout = interface.cache
    pairs = zip(layout.past, layout.present, strict=True)
    return round_by_layer(
        decoder,
        feeds.script(),
        folder,
        group=plan.group,
        dtype=dtype,
        keep_float=plan.kept,
        cache={name: out for past, present in pairs for name, out in zip(past, present, strict=True)},
        empty=(1, layout.kv_heads, 0, layout.head_dim),
        check=check,
        done=functools.partial(progress, "round decoder, layers"),
    )


def _scan(
    graph: Path, feeds: SampleFeeds, plan: Int4Plan, rounded: Mapping[str, Rounded], progress: Progress
) -> Sensitivity:
    """Find the blocks that stay in float, in float32 and so with scales of float32."""

    def quantize(model: ir.Model, keep: frozenset[str]) -> None:
        InsertInt4(group=plan.group, whole=plan.whole, keep_float=keep | plan.kept, rounded=rounded)(model)

    return scan_blocks(
        graph,
        functools.partial(groupable, keep_float=plan.kept),
        quantize,
        feeds.decoder(),
        budget=plan.budget,
        done=functools.partial(progress, "scan decoder"),
    )


def forget_rounded(directory: Path) -> None:
    """Remove what the weights of a finished bundle were read from."""
    shutil.rmtree(directory / FOLDER, ignore_errors=True)
