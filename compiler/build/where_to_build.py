"""Where engines can be built that this machine can't build, and what to run to get there."""

from __future__ import annotations

import shlex

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.targets import machine
from lmmprune.compiler.targets.target import Target
from lmmprune.errors import LmmpruneError, MissingExtraError, TargetError


def where_to_build(
    error: MissingExtraError | TargetError, bundle: Bundle, target: Target, name: str, arch: str | None
) -> LmmpruneError:
    """Return the refusal of a machine that can't build, with the commands for one that can.

    Args:
        error: Why this one can't.
        bundle: What was to be built.
        target: For which target.
        name: What the user called it.
        arch: The GPU architecture that was named, or is the board's.
    """
    boards = _boards(target, name, arch)
    if any(gpu.arch in map(target.boards.get, boards) for gpu in machine.gpus()):
        # A package would bring the TensorRT of a PC.
        return type(error)(
            f"{str(error).split(': pip install')[0]}; on a Jetson, TensorRT and its Python module come with JetPack:"
            " sudo apt install nvidia-jetpack, and run lmmprune from an environment that sees them (python3 -m venv"
            " --system-site-packages)"
        )
    if boards:
        return TargetError(
            f"engines for a Jetson ({' or '.join(boards)}) are built on the board itself, and this machine isn't one:"
            f" make a folder to copy there, with the steps: {_folder(bundle, boards[0])} -- or, for trtexec alone,"
            f" without Python: {_plan(bundle, name)}"
        )
    ours = ["lmmprune", "build", bundle.path.name, "--target", target.name, *(["--arch", arch] if arch else [])]
    where = f"a machine with {target.requires}" if not target.architectures else "any machine"
    jetson = f" -- or, for a Jetson: {_folder(bundle, next(iter(target.boards)))}" if target.boards else ""
    return type(error)(
        f"{error}. Copy '{bundle.path}' to {where} and run: pip install 'lmmprune[{target.extra}]' &&"
        f" {shlex.join(ours)}{jetson} -- or, if it has no Python, write a folder that builds there with trtexec:"
        f" {_plan(bundle, name)}"
    )


def _boards(target: Target, name: str, arch: str | None) -> list[str]:
    """Return the boards that are meant, one of each architecture: by name, by architecture, or where no GPU is here."""
    if name in target.boards:
        return [name]
    first: dict[str, str] = {}
    for board, theirs in target.boards.items():
        first.setdefault(theirs, board)
    if arch is not None:
        return [first[arch]] if arch in first else []
    present = [gpu.arch for gpu in machine.gpus()]
    return [board for theirs, board in first.items() if theirs in present or not present]


def _folder(bundle: Bundle, board: str) -> str:
    return shlex.join(["lmmprune", "deploy", str(bundle.path), "--for", board, "-o", f"{bundle.path}-{board}"])


def _plan(bundle: Bundle, name: str) -> str:
    return shlex.join(
        ["lmmprune", "build", str(bundle.path), "--target", name, "--plan-only", "-o", f"{bundle.path}-plan"]
    )
