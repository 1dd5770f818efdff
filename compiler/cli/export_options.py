"""The options of ``lmmprune export``, in the groups of its help, and which mean nothing without another one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from lmmprune.compiler.cli.command import option
from lmmprune.compiler.cli.given import refuse_ignored
from lmmprune.compiler.cli.options import (
    MODEL,
    OUTPUT,
    PRUNING,
    TARGET,
    calibration_options,
    dtype_option,
    force_option,
    method_options,
    model_option,
    output_option,
    ratio_options,
    schedule_option,
    target_option,
    triton_options,
)
from lmmprune.compiler.cli.output import json_option

_QUANTIZES = ("int8", "int8_weights_only", "int8_dynamic", "int4")
_INT8 = "INT8"
_INT4 = "INT4"

F = TypeVar("F", bound=Callable[..., Any])

# In the order of the help.
_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    model_option(required=True),
    option(
        "--weights",
        type=click.Choice(["auto", "dummy"]),
        default="auto",
        help="'dummy': synthetic weights.  [default: the checkpoint's]",
        group=MODEL,
    ),
    option("--layers", type=int, help="Keep only so many decoder layers (with --weights dummy).", group=MODEL),
    option(
        "--adapter",
        type=click.Path(path_type=Path),
        help="LoRA directory of PEFT, merged into the weights.",
        group=MODEL,
    ),
    option(
        "--image-size",
        multiple=True,
        metavar="PIXELS|HxW",
        help="Size of pictures, for a tower that takes any; may be repeated, each picture takes the nearest."
        "  [default: its own]",
        group=MODEL,
    ),
    option(
        "--tiles",
        metavar="RxC[,RxC...]|all",
        help="Rows and columns of tiles that pictures are cut into, for a model of tiles; of several each picture takes"
        " one.  [default: 2x2, or one image]",
        group=MODEL,
    ),
    option(
        "--images",
        type=int,
        default=1,
        show_default=True,
        metavar="N",
        help="Pictures that a prompt may have at most.",
        group=MODEL,
    ),
    option(
        "--frames",
        type=int,
        metavar="N",
        help="Frames of the video that a prompt is about.  [default: pictures]",
        group=MODEL,
    ),
    option(
        "--template", metavar="FILE|TEXT", help="Chat template (jinja), or text with <image> and {prompt}.", group=MODEL
    ),
    ratio_options(auto=True),
    option(
        "--percentile",
        type=float,
        default=90,
        show_default=True,
        help="Share of pictures that --ratio auto serves.",
        group=PRUNING,
    ),
    option(
        "--buckets",
        metavar="R,R,..",
        help="Several ratios behind one encoder; each picture takes one of them.",
        group=PRUNING,
    ),
    schedule_option(),
    method_options(),
    option("--joint", is_flag=True, help="One choice among the tokens of all --images pictures.", group=PRUNING),
    option(
        "--positions",
        type=click.Choice(["original", "contiguous"]),
        help="Kept tokens keep their numbers, or are numbered anew (as most released codes do).  [default: original]",
        group=PRUNING,
    ),
    option("--int8", is_flag=True, help="Quantize to INT8, calibrated on the pruned graph.", group=_INT8),
    option(
        "--int8-weights-only",
        is_flag=True,
        help="INT8 weights, float arithmetic: for decode-bound targets.",
        group=_INT8,
    ),
    option(
        "--int8-dynamic",
        is_flag=True,
        help="INT8 with ranges of each run instead of calibrated ones (ort-cpu).",
        group=_INT8,
    ),
    option(
        "--int8-policy",
        default="all",
        show_default=True,
        metavar="all|auto",
        help="What is quantized: everything, or auto: all but what hurts most.",
        group=_INT8,
    ),
    option(
        "--int8-budget",
        type=float,
        default=0.05,
        show_default=True,
        help="Relative error that auto allows.",
        group=_INT8,
    ),
    option(
        "--keep-float",
        multiple=True,
        metavar="PART:BLOCK",
        help="Keep a block in float, such as decoder:lm_head; may be repeated.",
        group=_INT8,
    ),
    option(
        "--smooth/--no-smooth",
        default=True,
        show_default=True,
        help="SmoothQuant, strength searched per layer.",
        group=_INT8,
    ),
    option(
        "--calibrator",
        default="minmax",
        show_default=True,
        metavar="NAME",
        help="How ranges are found: minmax, percentile, entropy or mse.",
        group=_INT8,
    ),
    calibration_options(_INT8),
    option("--int4", is_flag=True, help="Store the decoder's weights in four bits, float arithmetic.", group=_INT4),
    option(
        "--int4-group",
        type=int,
        metavar="32|64|128",
        help="Inputs of a weight that share a scale.  [default: the target's]",
        group=_INT4,
    ),
    option(
        "--int4-method",
        default="rtn",
        show_default=True,
        metavar="rtn|gptq",
        help="How weights are rounded: to the nearest, or on samples, so that products err least.",
        group=_INT4,
    ),
    option(
        "--int4-policy",
        default="all",
        show_default=True,
        metavar="all|auto",
        help="auto keeps blocks in float until the logits' error is within --int4-budget.",
        group=_INT4,
    ),
    option(
        "--int4-budget",
        default=0.05,
        show_default=True,
        type=float,
        help="Relative error that --int4-policy auto allows.",
        group=_INT4,
    ),
    option("--int8-vision", is_flag=True, help="With --int4, the vision tower in INT8, as by --int8.", group=_INT4),
    target_option(),
    dtype_option("the target's"),
    option(
        "--static-cache",
        type=int,
        metavar="TOKENS",
        help="Key/value cache of fixed length, updated in place.",
        group=TARGET,
    ),
    option(
        "--batch",
        type=int,
        default=1,
        show_default=True,
        metavar="B",
        help="Answer B questions at once, each about its own picture.",
        group=TARGET,
    ),
    output_option("Directory for the bundle."),
    option(
        "--share-weights",
        is_flag=True,
        help="Link the checkpoint's own files instead of copying weights.",
        group=OUTPUT,
    ),
    option(
        "--resume",
        is_flag=True,
        help="Go on with an interrupted export; keep what is written if interrupted again.",
        group=OUTPUT,
    ),
    force_option("a bundle that is there, its engines included, and what lies at --triton"),
    triton_options,
    option(
        "--cache/--no-cache",
        default=True,
        help="Keep traces of architectures, and take those of earlier exports.",
    ),
    json_option,
)


def export_options(function: F) -> F:
    """Add all of them; each arrives as the argument of its name."""
    for add in reversed(_OPTIONS):
        function = add(function)
    return function


def check_export_options(
    ratio: str | None, buckets: str | None, schedule: Path | None, request: Mapping[str, object]
) -> None:
    """Refuse options that say more about something that isn't done.

    Args:
        ratio: As ``--ratio`` takes it.
        buckets: As ``--buckets`` takes it.
        schedule: As ``--schedule`` takes it.
        request: The other options by their parameter names.

    Raises:
        InputError: One was given.
    """
    prunes = ratio is not None or request["keep"] is not None or bool(buckets) or schedule is not None
    one = [f"--{name.replace('_', '-')}" for name in _QUANTIZES if request[name]]
    static = one == ["--int8"] or (one == ["--int4"] and bool(request["int8_vision"]))
    how = ("smooth", "calibrator", "int8_budget")
    refuse_ignored(
        prunes,
        "says how tokens are removed: add --ratio R, --keep K, --buckets or --schedule",
        *("method", "method_file", "pairs", "positions"),
    )
    refuse_ignored(ratio == "auto", "is for --ratio auto: leave it out", "percentile")
    refuse_ignored(bool(one), "says how to quantize: add --int8", "int8_policy", "keep_float", *how)
    refuse_ignored(
        bool(request["int4"]),
        "is for four-bit weights: add --int4",
        *("int4_group", "int4_method", "int4_policy", "int8_vision"),
    )
    refuse_ignored(request["int4_policy"] == "auto", "is what --int4-policy auto allows: add that", "int4_budget")
    refuse_ignored(
        not request["int4"] or bool(request["int8_vision"]),
        "is for graphs in INT8, and --int4 makes none: add --int8-vision, or leave it out",
        "int8_policy",
    )
    refuse_ignored(
        static or request["int8_policy"] == "auto" or len(one) > 1,
        f"is about ranges that are measured before, and {one[0] if one else '--int8'} has none: leave it out",
        *how,
    )
    refuse_ignored(request["int8_policy"] == "auto", "is what --int8-policy auto allows: add that", "int8_budget")
    rounds = bool(request["int4"]) and (request["int4_method"] != "rtn" or request["int4_policy"] == "auto")
    refuse_ignored(
        static or rounds or len(one) > 1 or ratio == "auto" or bool(buckets),
        "is for what looks at pictures first, --int8, --int4-method gptq, --int4-policy auto, --ratio auto and"
        " --buckets: add one of them,"
        " or leave it out",
        "calib_samples",
    )
    refuse_ignored(
        prunes or bool(one),
        "is for what looks at pictures first, --int8, --ratio auto and --buckets, and for measuring what is lost: add"
        " one of them or --ratio R, or leave it out",
        "calib",
    )
