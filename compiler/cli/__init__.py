"""The command line: one file per command, loaded only when it is called, so that ``--help`` answers at once."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

import lmmprune
from lmmprune.compiler.cli.output import one_line_warnings
from lmmprune.errors import LmmpruneError, suggestion

# Name -> one-line help; the command lives in the module of the same name as the object ``command``.
COMMANDS = {
    "export": "Export a model: prune, optionally quantize, write a bundle.",
    "rewrite": "Prune the vision tower in an ONNX file of another exporter.",
    "build": "Compile a bundle's graphs into engines for a target.",
    "bundle": "Make a folder that a Jetson board is deployed from.",
    "run": "Answer a question about a picture.",
    "bench": "Time bundles side by side.",
    "eval": "Measure a bundle's accuracy on a set of questions.",
    "study": "Measure a grid of methods, ratios and precisions; write one report.",
    "verify": "Check a bundle against its checksums and the PyTorch model.",
    "inspect": "Show sites, anchors and shapes of a bundle or a graph.",
    "show": "Draw the kept patches over a picture.",
    "flops": "Say what pruning saves: FLOPs and key/value cache before and after.",
    "methods": "List the pruning methods.",
    "models": "List the models and families.",
    "targets": "List the targets.",
    "doctor": "Say what this machine can export, build and run.",
}


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"lmmprune.compiler.cli.{cmd_name}")
        command: click.Command = module.command
        if not any("-v" in parameter.opts for parameter in command.params):
            command.params.append(verbose_option())
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            raise click.UsageError(f"no command '{args[0]}'{suggestion(args[0], COMMANDS)}")
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None:
            from lmmprune.compiler.cli.given import refuse_repeated

            refuse_repeated(name, command, ctx, rest)
        return name, command, rest

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def verbose_option() -> click.Option:
    """Return the option of every command that shows where an error comes from."""
    return click.Option(
        ["-v", "--verbose"],
        is_flag=True,
        expose_value=False,
        callback=remember_verbose,
        help="Show the traceback behind an error.",
    )


def remember_verbose(ctx: click.Context, parameter: click.Parameter, value: bool) -> bool:
    """Note for ``main`` that tracebacks are wanted."""
    _wanted["traceback"] = _wanted["traceback"] or value
    return value


_wanted = {"traceback": False}


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(lmmprune.__version__, prog_name="lmmprune")
@click.option("-v", "--verbose", is_flag=True, expose_value=False, callback=remember_verbose, hidden=True)
def app() -> None:
    """Prune visual tokens inside the graph of a large multimodal model, quantize it, compile it."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; a user's mistake is one line on stderr and exit code 2."""
    _wanted["traceback"] = False
    try:
        with one_line_warnings():
            result: Any = app.main(args=None if argv is None else list(argv), standalone_mode=False)
    except click.UsageError as error:
        usage = error.ctx.command_path if error.ctx else "lmmprune"
        _fail(f"{error.format_message()} (see '{usage} --help')", 2)
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except LmmpruneError as error:
        if _wanted["traceback"]:
            traceback.print_exception(error)
        _fail(" ".join(str(error).split()), 2)
    except (KeyboardInterrupt, click.Abort):
        _fail(f"interrupted; {_left(sys.argv[1:] if argv is None else argv)}", 130)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is shown whole
        traceback.print_exception(error)
        _fail("this is a mistake of lmmprune, not yours: please report it with the lines above", 1)
    sys.exit(result if isinstance(result, int) else 0)


def _left(argv: Sequence[str]) -> str:
    """Return what an interrupted command leaves behind."""
    if "--resume" in argv:
        return "what was written is kept, the same command goes on from there"
    resumable = " (with --resume, what was written is kept to go on from)" if "export" in argv[:1] else ""
    return f"nothing is left half-written{resumable}"


def _fail(message: str, code: int) -> None:
    print(f"lmmprune: error: {message}", file=sys.stderr)
    sys.exit(code)
