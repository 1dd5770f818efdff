"""``lmmprune targets``: the deployment targets and what each one takes."""

from __future__ import annotations

import click

from lmmprune.compiler.cli.output import json_option, print_json, show, table
from lmmprune.compiler.targets.target import Target
from lmmprune.compiler.targets.targets import TARGETS

_OPERATORS = (
    ("Attention", "attention"),
    ("RotaryEmbedding", "rotary"),
    ("RMSNormalization", "rmsnorm"),
    ("TensorScatter", "scatter"),
)


@click.command("targets")
@json_option
def command(as_json: bool) -> None:
    """List the targets: opset, operators taken as they are, INT8 scheme, architectures."""
    if as_json:
        print_json({"targets": [target.as_dict() for target in TARGETS.values()]})
        return
    columns = ["target", "also", "opset", *(title for _, title in _OPERATORS), "causal", "int8", "type", "builds for"]
    show(
        table(columns, [_row(target) for target in TARGETS.values()]),
        "Where attention, rotary or rmsnorm is '-', export writes it as primitives.",
    )


def _row(target: Target) -> list[str]:
    return [
        target.name,
        ", ".join(target.names[1:]),
        str(target.opset),
        *("yes" if target.takes(op) else "-" for op, _ in _OPERATORS),
        target.causal,
        target.int8,
        target.dtype,
        " ".join(target.architectures) or ("the GPU present" if target.compiled else "no build"),
    ]
