"""``lmmprune targets``: the deployment targets and what each one takes."""

from __future__ import annotations

from typing import Any

import click

from lmmprune.compiler.cli import completion
from lmmprune.compiler.cli.command import Command, argument
from lmmprune.compiler.cli.output import json_option, print_json, show
from lmmprune.compiler.cli.table import Column, details, table
from lmmprune.compiler.targets.target import Target
from lmmprune.compiler.targets.targets import TARGETS, resolve
from lmmprune.units import human_bytes

_OPERATORS = (
    ("Attention", "attention"),
    ("RotaryEmbedding", "rotary"),
    ("RMSNormalization", "rmsnorm"),
    ("TensorScatter", "scatter"),
)
_CAUSAL = {
    "mask": "an input of its own",
    "upper_left": "is_causal, aligned at the upper left",
    "lower_right": "is_causal, aligned at the lower right",
}


@click.command("targets", cls=Command, example="lmmprune targets jetson-orin-jp6")
@argument("name", required=False, type=completion.TARGET)
@json_option
def command(name: str | None, as_json: bool) -> None:
    """List the targets: opset, operators taken as they are, INT8 scheme, architectures.

    With NAME, a target or a board, say more of it.
    """
    if name is not None:
        target = resolve(name)
        if as_json:
            print_json(target.as_dict() | ({"board": _board(name)} if name in target.boards else {}))
        else:
            show(details(_facts(target, name)))
        return
    if as_json:
        print_json({"targets": [target.as_dict() for target in TARGETS.values()]})
        return
    columns: list[str | Column] = [
        "target",
        Column(title="also", drop=3, most=24),
        "opset",
        *(Column(title=title, drop=4 + place) for place, (_, title) in enumerate(_OPERATORS)),
        Column(title="causal", drop=8),
        "int8",
        Column(title="type", drop=1),
        Column(title="builds for", drop=2, most=24),
    ]
    show(
        table(columns, [_row(target) for target in TARGETS.values()]),
        "An operator that a target doesn't take as it is ('-') is written as primitives.",
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
        _builds_for(target),
    ]


def _builds_for(target: Target) -> str:
    return " ".join(target.architectures) or ("the GPU present" if target.compiled else "no build")


def _facts(target: Target, name: str) -> dict[str, str]:
    """Return what people want to know of one target."""
    first, last = target.version or (None, None)
    facts = {
        "target": f"{target.name}: {target.summary}",
        "other names": ", ".join(target.names[1:]) or "none",
        "needs": target.requires,
        "to install": (
            "sudo apt install nvidia-jetpack" if name in target.boards else f"pip install 'lmmprune[{target.extra}]'"
        ),
        "releases": "any" if first is None else f"{first} and newer, before {last}",
        "opset": f"{target.opset} is written, up to {target.max_opset} is read",
        "as they are": ", ".join(sorted(target.native_ops)) or "no high-level operator: all become primitives",
        "causal mask": _CAUSAL[target.causal],
        "INT8": ", ".join(target.int8_schemes),
        "INT4": _int4(target),
        "types": ", ".join(f"{dtype}{' (default)' * (dtype == target.dtype)}" for dtype in target.dtypes),
        "builds for": _builds_for(target),
    }
    if name in target.boards:
        found = _board(name)
        facts["board"] = f"{name}: JetPack {found['release']}, CUDA {found['cuda']}, Python {found['python']}"
        facts["boards sold"] = ", ".join(f"{board} ({human_bytes(size)})" for board, size in found["boards"].items())
    return facts


def _int4(target: Target) -> str:
    """Say in which groups and which form weights of four bits are written."""
    groups = ", ".join(str(group) for group in target.int4_groups)
    form = "DequantizeLinear" if target.nbits_level is None else f"MatMulNBits at accuracy level {target.nbits_level}"
    whole = ", which divide a weight's inputs" if target.int4_whole else ""
    return f"{form}, groups of {groups}{whole}"


def _board(name: str) -> dict[str, Any]:
    """Return what a board's software carries, and the boards that there are with their memory in bytes."""
    from lmmprune.compiler.targets.boards import BOARDS, jetpack

    software, arch = jetpack(name), resolve(name).boards[name]
    return {
        "name": name,
        "arch": arch,
        "release": software.release,
        "cuda": software.cuda,
        "python": software.python,
        "boards": {board.name: board.memory for board in BOARDS if board.arch == arch},
    }
