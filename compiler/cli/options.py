"""The options that several commands have, each declared once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from lmmprune.compiler.cli import completion
from lmmprune.compiler.cli.command import GENERAL, option
from lmmprune.defaults import METHOD
from lmmprune.errors import InputError
from lmmprune.limits import MOST_THREADS

F = TypeVar("F", bound=Callable[..., Any])

MODEL = "Model"
PRUNING = "Pruning"
TARGET = "Target"
OUTPUT = "Output"
_AMOUNT = "Fraction of visual tokens removed, 0 <= R < 1."


def model_option(
    help: str = "Alias (see 'lmmprune models'), hub id, or local directory.", **more: Any
) -> Callable[[F], F]:
    """Add ``--model``.

    Args:
        help: For ``--help``.
        more: As click takes it, such as ``required``.
    """
    return option("--model", type=completion.MODEL, help=help, **{"group": MODEL, **more})


def output_option(help: str, *, required: bool = True, dir_okay: bool = True, group: str = OUTPUT) -> Callable[[F], F]:
    """Add ``-o``; it arrives as the argument ``output``."""
    return option(
        *("-o", "--output"),
        required=required,
        type=click.Path(path_type=Path, dir_okay=dir_okay),
        help=help,
        group=group,
    )


def method_options(
    default: str | None = METHOD,
    *,
    about: str = "Selection method (see 'lmmprune methods').",
    file: bool = True,
    group: str = PRUNING,
) -> Callable[[F], F]:
    """Add ``--method``, ``--method-file`` and ``--set``; they arrive as ``method``, ``method_file`` and ``pairs``.

    Args:
        default: The method where none is given.
        about: For ``--help``.
        file: Whether a method may come from a file.
        group: Where ``--help`` shows them.
    """

    def decorate(function: F) -> F:
        function = option(
            "--set",
            "pairs",
            multiple=True,
            metavar="NAME=VALUE",
            help="A hyper-parameter of a method; may be repeated.",
            group=group,
        )(function)
        if file:
            function = method_file_option("Python file that defines methods.", group=group)(function)
        shown = default is not None
        return option("--method", type=completion.METHOD, default=default, show_default=shown, help=about, group=group)(
            function
        )

    return decorate


def method_file_option(help: str, *, group: str = GENERAL) -> Callable[[F], F]:
    """Add ``--method-file``."""
    return option("--method-file", type=click.Path(path_type=Path), help=help, group=group)


def ratio_options(*, auto: bool = False, group: str = PRUNING) -> Callable[[F], F]:
    """Add ``--ratio`` and ``--keep``.

    Args:
        auto: Whether ``--ratio`` may be ``auto``; it is a text then.
        group: Where ``--help`` shows them.
    """

    def decorate(function: F) -> F:
        function = option(
            "--keep", type=int, metavar="K", help="Number of visual tokens that stay, instead of --ratio.", group=group
        )(function)
        kind: dict[str, Any] = {"metavar": "R|auto"} if auto else {"metavar": "R", "type": float}
        help = f"{_AMOUNT}  [default: 0, not pruned]"
        return option("--ratio", help=help, group=group, **kind)(function)

    return decorate


def method_files_option(about: str, *, group: str) -> Callable[[F], F]:
    """Add ``--method-file``, which may be repeated."""
    return option(
        "--method-file", "method_files", multiple=True, type=click.Path(path_type=Path), help=about, group=group
    )


def schedule_option(*, group: str = PRUNING) -> Callable[[F], F]:
    """Add ``--schedule``."""
    return option(
        "--schedule",
        type=click.Path(path_type=Path),
        help="JSON file of sites and the tokens that leave them, for a method that can cut at any decoder layer.",
        group=group,
    )


def target_option(
    default: str | None = "ort-cpu", *, about: str = "Where it will run (see 'lmmprune targets').", group: str = TARGET
) -> Callable[[F], F]:
    """Add ``--target``."""
    shown = default is not None
    return option("--target", type=completion.TARGET, default=default, show_default=shown, help=about, group=group)


def dtype_option(default: str) -> Callable[[F], F]:
    """Add ``--dtype``.

    Args:
        default: Whose type it is without the option, for ``--help``.
    """
    return option(
        "--dtype",
        type=click.Choice(["float32", "float16", "bfloat16"]),
        help=f"Floating-point type.  [default: {default}]",
        group=TARGET,
    )


def calibration_options(group: str) -> Callable[[F], F]:
    """Add ``--calib`` and ``--calib-samples``."""

    def decorate(function: F) -> F:
        function = option(
            "--calib-samples",
            type=click.IntRange(min=1),
            default=32,
            show_default=True,
            help="Take so many of them at most.",
            group=group,
        )(function)
        return option(
            "--calib",
            type=click.Path(path_type=Path),
            help="Calibrate with these pictures (a directory) or pairs of image and prompt (JSON Lines).",
            group=group,
        )(function)

    return decorate


def max_prompt_option(*, group: str = GENERAL) -> Callable[[F], F]:
    """Add ``--max-prompt``."""
    return option(
        "--max-prompt",
        type=click.IntRange(min=1),
        help="Longest prompt in tokens.  [default: the model's limit]",
        group=group,
    )


def threads_option(help: str = "Threads within an operator.", *, group: str = GENERAL) -> Callable[[F], F]:
    """Add ``--threads``."""
    return option("--threads", type=click.IntRange(min=1, max=MOST_THREADS), help=help, group=group)


def unsealed_option(function: F) -> F:
    """Add ``--unsealed`` to a command that reads bundles; it holds until the command ends."""

    def remember(ctx: click.Context, parameter: click.Parameter, value: bool) -> bool:
        from lmmprune.compiler.bundle.seal import unsealed

        return ctx.with_resource(unsealed(value)) or value

    return option(
        "--unsealed",
        is_flag=True,
        expose_value=False,
        callback=remember,
        help="Read bundles with an edited manifest, or one of the format before seals, too.",
    )(function)


def force_option(what: str, *, group: str = OUTPUT) -> Callable[[F], F]:
    """Add ``--force`` to a command that writes; it arrives as the argument ``force``.

    Args:
        what: What it replaces, for ``--help``.
        group: Where ``--help`` shows it.
    """
    return option("--force", is_flag=True, help=f"Replace {what}.", group=group)


def triton_options(function: F) -> F:
    """Add ``--triton`` and ``--triton-backend`` to a command; they arrive as ``triton`` and ``triton_backend``."""
    directory = option(
        "--triton",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Also write a model repository for Triton.",
        group=OUTPUT,
    )
    backend = option(
        "--triton-backend",
        type=click.Choice(["default", "python"]),
        default="default",
        show_default=True,
        help="What runs the graphs: the target's backend, or onnxruntime in Python models.",
        group=OUTPUT,
    )
    decorated: F = directory(backend(function))
    return decorated


def check_triton(
    bundle: Path,
    triton: Path | None,
    triton_backend: str,
    target: str,
    dtype: str | None,
    cache: int | None,
    *,
    force: bool,
) -> None:
    """Refuse what ``--triton`` can't do before anything slow begins.

    Args:
        bundle: The bundle, which may not be there yet.
        triton: Directory of the repository, None if none is wanted.
        triton_backend: As ``--triton-backend`` takes it.
        target: Name or alias of the bundle's target.
        dtype: Its floating-point type; None: the target's own.
        cache: Fixed length of its key/value cache; None: it grows.
        force: Whether a repository that is there may be replaced.

    Raises:
        LmmpruneError: The directory isn't free, or Triton can't serve such a bundle.
    """
    from lmmprune.compiler.export.choices import dtype_of
    from lmmprune.compiler.targets.targets import resolve

    if triton is None:
        if triton_backend != "default":
            raise InputError("--triton-backend says how a repository serves: add --triton DIR")
        return
    from lmmprune.compiler.triton.models import backend_of
    from lmmprune.compiler.triton.repository import check_cache, check_destination

    check_destination(triton, bundle, force=force)
    check_cache(cache)
    backend_of(resolve(target), dtype_of(resolve(target), dtype), triton_backend)
