"""Which GPU architecture an engine is built for: the one that was named, a board's, or the GPU that is here."""

from __future__ import annotations

from lmmprune.compiler.targets import machine
from lmmprune.compiler.targets.target import Target
from lmmprune.compiler.targets.targets import TARGETS
from lmmprune.errors import TargetError, suggestion

# doc: NVIDIA's table of compute capabilities, from the oldest that TensorRT 10 serves.
NVIDIA = ("sm75", "sm80", "sm86", "sm87", "sm89", "sm90", "sm100", "sm103", "sm110", "sm120", "sm121")


def named_arch(target: Target, name: str, arch: str | None) -> str | None:
    """Return the architecture that was asked for; None: the GPU that is present.

    Args:
        target: A target whose engines are compiled.
        name: What the user called it; the name of a board says the architecture.
        arch: What the user named.

    Raises:
        TargetError: There is no such architecture, the target doesn't build for it, or the board has another one.
    """
    board = target.boards.get(name)
    if arch is None or arch == board:
        return board
    if board is not None:
        raise TargetError(f"'{name}' has {board}, --arch is '{arch}': leave --arch out, or take another target")
    known = target.architectures or NVIDIA
    # The builder itself knows whether it compiles for a GPU that is here.
    if arch in known or arch in _present():
        return arch
    boards = [board for other in TARGETS.values() for board, theirs in other.boards.items() if theirs == arch]
    if boards:
        raise TargetError(
            f"'{target.name}' can't build for '{arch}', a Jetson, which builds with its own TensorRT: export for the "
            f"board (--target {' or '.join(boards)}) and build there"
        )
    raise TargetError(f"'{target.name}' can't build for '{arch}'{suggestion(arch, known)}")


def present_or_named(target: Target, arch: str | None) -> str:
    """Return the architecture to build for.

    Args:
        target: A target whose engines are compiled.
        arch: What ``named_arch`` gave.

    Raises:
        TargetError: None was named and no GPU is here, or the target builds only for a GPU that isn't here.
    """
    present = _present()
    if arch is not None and (target.architectures or arch in present):
        return arch
    if arch is None and present:
        return present[0]
    if target.architectures:
        raise TargetError(f"no GPU was found, so name one with --arch: {', '.join(target.architectures)}")
    found = f"found {', '.join(present)}" if present else "no NVIDIA GPU was found"
    raise TargetError(
        f"'{target.name}' builds on the GPU that will run the engine{f' ({arch})' if arch else ''}, {found}"
    )


def _present() -> list[str]:
    return [gpu.arch for gpu in machine.gpus() if gpu.arch is not None]
