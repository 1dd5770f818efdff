"""``lmmprune bundle``: make a folder that a Jetson board is deployed from."""

from __future__ import annotations

from pathlib import Path

import click

from lmmprune.compiler.cli.options import force_option, size
from lmmprune.compiler.cli.output import human_bytes, json_option, note, print_json, show, table


@click.command("bundle")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--for", "board", required=True, help="The board's software, such as jetson-orin-jp6 or jetson-thor-jp7.")
@click.option("--output", "-o", required=True, type=click.Path(path_type=Path), help="The folder.")
@click.option("--ram", type=size, metavar="SIZE", help="Memory of the board, such as 8GiB: refuse what it can't hold.")
@click.option("--max-prompt", type=click.IntRange(min=1), help="Longest prompt in tokens. Default: the model's limit.")
@click.option(
    "--workspace", type=size, metavar="SIZE", default="1GiB", show_default=True, help="Most scratch memory of a kernel."
)
@click.option(
    "--system", type=size, metavar="SIZE", default="1.5GiB", show_default=True, help="What the board keeps for itself."
)
@force_option("such a folder that is there")
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
        note(f"warning: {made.lack}")
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
