"""From a bundle to where it runs: engines, plans for a machine without Python, boards, a Triton repository."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path

from lmmprune.compiler.build.build import Built
from lmmprune.compiler.build.engine_spec import WORKSPACE
from lmmprune.compiler.build.options import BuildOptions
from lmmprune.compiler.bundle import seal
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.deploy import deploy as boards
from lmmprune.compiler.deploy.deploy import Deployed
from lmmprune.compiler.deploy.memory_plan import SYSTEM
from lmmprune.compiler.deploy.stages import QUESTION
from lmmprune.compiler.deploy.write_plan import Plan, write_plan
from lmmprune.compiler.triton.repository import Repository, write_repository
from lmmprune.progress import Progress, silent

File = str | PathLike[str]


@seal.may_be_unsealed
def build(
    bundle: File,
    target: str | None = None,
    *,
    arch: str | None = None,
    components: Sequence[str] | None = None,
    max_prompt: int | None = None,
    options: BuildOptions | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda line: None,
    unsealed: bool = False,
    progress: Progress = silent,
) -> list[Built]:
    """Compile a bundle's graphs into engines beside them; one that is up to date is kept.

    Args:
        bundle: The bundle's directory.
        target: What the engines are for; None: the bundle's own target.
        arch: GPU architecture such as ``sm89``; None: the board that the target names, else the GPU of this machine.
        components: ``vision``, ``decoder``, ``bucket_K``; None: all.
        max_prompt: Longest prompt in tokens; None: as many as the model has positions.
        options: What to ask of the builder.
        force: Build even what is up to date, or was built with other options.
        say: Called with one line at a time.
        unsealed: Read a bundle whose manifest was edited, or is of the format before seals, as it is.
        progress: Called while it runs.

    Returns:
        Every engine: its record, path, and whether it is fresh.

    Raises:
        TargetError: The bundle doesn't suit the target, or this machine can't build for it.
        MissingExtraError: The builder isn't installed; the message holds the commands for another machine.
        LmmpruneError: Anything else that you can mend.
    """
    from lmmprune.compiler.build.build import build as run

    return run(
        Path(bundle),
        target or Bundle.open(Path(bundle)).manifest.target,
        arch=arch,
        components=components,
        max_prompt=max_prompt,
        force=force,
        options=options,
        say=say,
        step=progress,
    )


def plan(
    bundles: Sequence[File],
    out: File,
    target: str | None = None,
    *,
    question: str = QUESTION,
    max_prompt: int | None = None,
    options: BuildOptions | None = None,
    force: bool = False,
) -> Plan:
    """Write a folder that builds and times bundles on a machine without Python; the first one is the baseline.

    Args:
        bundles: Their directories.
        out: The folder.
        target: What it builds for; None: the first bundle's own target.
        question: What the prefill is timed with.
        max_prompt: Longest prompt in tokens; None: as many as the model has positions.
        options: What to ask of the builder.
        force: Replace a plan that is there.

    Raises:
        LmmpruneError: A bundle doesn't suit the target, or the folder can't be written.
    """
    paths = [Path(bundle) for bundle in bundles]
    chosen = target or Bundle.open(paths[0]).manifest.target
    return write_plan(paths, chosen, Path(out), question=question, max_prompt=max_prompt, options=options, force=force)


def deploy(
    bundle: File,
    board: str,
    out: File,
    *,
    ram: int | None = None,
    max_prompt: int | None = None,
    workspace: int = WORKSPACE,
    system: int = SYSTEM,
    force: bool = False,
) -> Deployed:
    """Write a folder that a Jetson board is deployed from: bundle, plan, run-time, requirements and the steps.

    Args:
        bundle: The bundle's directory.
        board: The board's software, such as ``jetson-orin-jp6``.
        out: The folder.
        ram: Memory of the board in bytes, which must hold everything; None: not checked.
        max_prompt: Longest prompt in tokens; None: as many as the model has positions.
        workspace: Scratch memory in bytes that a kernel may take.
        system: Bytes that the board keeps for itself.
        force: Replace such a folder that is there.

    Returns:
        The folder, and what the bundle will take of the memory that processor and GPU share.

    Raises:
        LmmpruneError: The board is unknown or too small, or the bundle doesn't suit it.
    """
    return boards.deploy(
        Path(bundle),
        board,
        Path(out),
        ram=ram,
        max_prompt=max_prompt,
        workspace=workspace,
        system=system,
        force=force,
    )


def triton_repository(
    bundle: File, out: File, *, backend: str = "default", arch: str | None = None, force: bool = False
) -> Repository:
    """Write a model repository for Triton Inference Server.

    Args:
        bundle: The bundle's directory; where its target is compiled, with engines.
        out: The repository.
        backend: ``default``, the target's own, or ``python``: onnxruntime in Python models.
        arch: Whose engines, where there are several.
        force: Replace a repository that is there.

    Raises:
        LmmpruneError: Triton can't serve such a bundle, or the directory isn't free.
    """
    return write_repository(Bundle.open(Path(bundle)), Path(out), backend=backend, arch=arch, force=force)
