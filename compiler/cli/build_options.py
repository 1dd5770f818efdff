"""The options of ``lmmprune build``, in the groups of its help."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from lmmprune.compiler.cli import completion
from lmmprune.compiler.cli.command import option
from lmmprune.compiler.cli.options import (
    force_option,
    max_prompt_option,
    output_option,
    target_option,
    triton_options,
)
from lmmprune.compiler.cli.output import json_option
from lmmprune.compiler.cli.values import size
from lmmprune.compiler.cli.verbosity import remember_verbose

F = TypeVar("F", bound=Callable[..., Any])

_ENGINES = "Engines"
_PLAN = "Plan"

# In the order of the help.
_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    target_option(
        None, about="What the engines are for (see 'lmmprune targets').  [default: the bundle's own]", group=_ENGINES
    ),
    option(
        "--arch",
        type=completion.ARCHITECTURE,
        help="GPU architecture, such as sm89.  [default: the GPU of this machine]",
        group=_ENGINES,
    ),
    option(
        "--component",
        "components",
        multiple=True,
        metavar="NAME",
        help="vision, decoder, bucket_K or selection; may be repeated.  [default: all]",
        group=_ENGINES,
    ),
    max_prompt_option(group=_ENGINES),
    option("--refit", is_flag=True, help="Let the weights be exchanged later.", group=_ENGINES),
    option(
        "--strip-weights",
        is_flag=True,
        help="Leave the weights out of the engine; they are put in when it runs.",
        group=_ENGINES,
    ),
    option(
        "--version-compatible",
        is_flag=True,
        help="Let newer releases of the same major version run the engine.",
        group=_ENGINES,
    ),
    option(
        "--workspace",
        type=size,
        metavar="SIZE",
        help="Most scratch memory of a kernel.  [default: 1GiB for a board, else no limit]",
        group=_ENGINES,
    ),
    option(
        "--timing-cache",
        type=click.Path(path_type=Path),
        help="Keep what the builder measures in this file.",
        group=_ENGINES,
    ),
    option(
        "--plan-only", is_flag=True, help="Build nothing: write a folder that builds and times elsewhere.", group=_PLAN
    ),
    output_option("The folder of --plan-only.", required=False, group=_PLAN),
    option("--prompt", help="What a plan times the prefill with.  [default: a short question]", group=_PLAN),
    triton_options,
    force_option("engines, also if they are up to date, and what lies at -o or --triton"),
    json_option,
    option(
        *("-v", "--verbose"),
        is_flag=True,
        callback=remember_verbose,
        help="Pass on the builder's messages; show the traceback behind an error.",
    ),
)


def build_options(function: F) -> F:
    """Add all of them; each arrives as the argument of its name."""
    for add in reversed(_OPTIONS):
        function = add(function)
    return function
