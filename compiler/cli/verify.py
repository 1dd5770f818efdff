"""``lmmprune verify``: is this bundle what it says it is."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import click

from lmmprune.compiler.cli.command import Command, argument, option
from lmmprune.compiler.cli.options import unsealed_option
from lmmprune.compiler.cli.output import json_option, print_json, show
from lmmprune.compiler.cli.progress import phases
from lmmprune.compiler.cli.table import table
from lmmprune.errors import require

_STATES = {True: "ok", False: "FAILED", None: "not checked"}


@click.command("verify", cls=Command)
@argument("bundle", type=click.Path(path_type=Path))
@option("--samples", type=click.IntRange(min=1), default=4, show_default=True, help="Pictures to compare on.")
@option(
    "--data",
    type=click.Path(path_type=Path),
    help="Compare on these pictures (a directory) or pairs of image and prompt (JSON Lines), not on built-in ones.",
)
@option("--model", help="Where its checkpoint is, if not where the bundle says.")
@option("--adapter", type=click.Path(path_type=Path), help="LoRA directory that was merged into its weights.")
@unsealed_option
@json_option
def command(
    bundle: Path, samples: int, data: Path | None, model: str | None, adapter: Path | None, as_json: bool
) -> None:
    """Check a bundle's files and graphs, and its kept indices and logits against the PyTorch model.

    Exits with 2 when a check fails. What can't be checked, as with a method of your own, doesn't count as failed.
    """
    require("onnx_ir", "export")
    from lmmprune.compiler.verify.verify import verify

    with phases() as step:
        checks = verify(bundle, samples=samples, data=data, model=model, adapter=adapter, progress=step)
    if as_json:
        print_json({"bundle": str(bundle), "checks": [dataclasses.asdict(check) for check in checks]})
    else:
        rows = [[check.name, _STATES[check.passed], check.found] for check in checks]
        show(table(["check", "", "found"], rows))
    if any(check.passed is False for check in checks):
        sys.exit(2)
