"""``lmmprune deploy``: make a folder that a Jetson board is deployed from."""

from __future__ import annotations

from pathlib import Path

import click

from lmmprune.compiler.cli import completion
from lmmprune.compiler.cli.command import GENERAL, Command, argument, option
from lmmprune.compiler.cli.options import force_option, max_prompt_option, output_option
from lmmprune.compiler.cli.output import json_option, print_json, show, warn
from lmmprune.compiler.cli.table import table
from lmmprune.compiler.cli.values import size
from lmmprune.units import human_bytes


@click.command("deploy", cls=Command, example="lmmprune deploy out/ --for jetson-orin-jp6 --ram 8GiB -o for-orin/")
@argument("directory", metavar="BUNDLE", type=click.Path(path_type=Path))
@option(
    "--for",
    "board",
    required=True,
    type=completion.BOARD,
    help="The board's software, such as jetson-orin-jp6 or jetson-thor-jp7.",
)
@output_option("The folder.", group=GENERAL)
@option("--ram", type=size, metavar="SIZE", help="Memory of the board, such as 8GiB: refuse what it can't hold.")
@max_prompt_option()
@option(
    "--workspace", type=size, metavar="SIZE", default="1GiB", show_default=True, help="Most scratch memory of a kernel."
)
@option(
    "--system", type=size, metavar="SIZE", default="1.5GiB", show_default=True, help="What the board keeps for itself."
)
@force_option("such a folder that is there", group=GENERAL)
@json_option
def command(
    directory: Path,
    board: str,
    output: Path,
    ram: int | None,
    max_prompt: int | None,
    workspace: int,
    system: int,
    force: bool,
    as_json: bool,
) -> None:
    """Make a folder that a board is deployed from: bundle, plan, run-time, requirements and the steps.

    Also says what the bundle will take of the memory that the board's processor and GPU share.
    """
    from lmmprune.compiler.deploy.deploy import as_dict, deploy

    made = deploy(
        directory, board, output, ram=ram, max_prompt=max_prompt, workspace=workspace, system=system, force=force
    )
    if made.lack is not None:
        warn(made.lack)
    if as_json:
        print_json(as_dict(made))
        return
    memory = made.memory
    rows = [[part.name, human_bytes(part.bytes), part.how] for part in memory.parts]
    show(table(["memory", "bytes", "how"], [*rows, ["total", human_bytes(memory.total), ""]]))
    boards = ", ".join(one.name for one in memory.boards(made.arch)) or "no board that is sold"
    if ram is not None:
        show(f"of {human_bytes(ram)}: {human_bytes(ram - memory.total)} stay free")
    show(f"building takes {human_bytes(made.building)} before that, about three times the largest graph's weights")
    show(f"fits: {boards}", f"copy {made.folder} to the board; README.md there has the steps")
