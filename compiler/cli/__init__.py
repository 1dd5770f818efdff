"""The command line: one file per command, loaded only when it is called, so that ``--help`` answers at once."""

from __future__ import annotations

import contextlib
import importlib
import json
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import click

from lmmprune.compiler.cli.command import general_options
from lmmprune.compiler.cli.config import set_variables
from lmmprune.compiler.cli.output import one_line_warnings, warn
from lmmprune.compiler.cli.signals import Signals, remembered
from lmmprune.compiler.cli.streams import check_words, drop, flush, mend_streams
from lmmprune.compiler.cli.verbosity import WANTED, remember_quiet, remember_verbose
from lmmprune.errors import LmmpruneError, one_line, suggestion
from lmmprune.version import __version__

# Name -> one-line help; the command lives in the module of the same name as the object ``command``.
COMMANDS = {
    "export": "Export a model: prune, optionally quantize, write a bundle.",
    "rewrite": "Prune the vision tower in an ONNX file of another exporter.",
    "build": "Compile a bundle's graphs into engines for a target.",
    "deploy": "Make a folder that a Jetson board is deployed from.",
    "run": "Answer a question about a picture.",
    "chat": "Ask question after question about a picture.",
    "serve": "Answer over HTTP as OpenAI's chat API does.",
    "bench": "Time bundles side by side.",
    "eval": "Measure a bundle's accuracy on a set of questions.",
    "compare": "Say how faithful bundles are to the unpruned one, without right answers.",
    "study": "Measure a grid of methods, ratios and precisions; write one report.",
    "tune": "Choose how to prune, within a loss or a time.",
    "verify": "Check a bundle against its checksums and the PyTorch model.",
    "inspect": "Show sites, anchors and shapes of a bundle or a graph.",
    "show": "Draw the kept patches over a picture.",
    "card": "Write a bundle's model card.",
    "flops": "Say what pruning saves: FLOPs and key/value cache before and after.",
    "methods": "List the pruning methods.",
    "models": "List the models and families.",
    "targets": "List the targets.",
    "doctor": "Say what this machine can export, build and run.",
}

# Old name -> new one; the old one goes with the next release.
RENAMED = {"bundle": "deploy"}

_LONGEST = 400
"""Letters of an error's line."""

_EPILOG = """\
Options may also stand in a file, as in 'lmmprune export --config export.toml'
with lines such as ratio = 0.5, or in the environment, as
LMMPRUNE_EXPORT_RATIO=0.5. The command line beats the environment, which beats
the file.

The shell completes the names of commands, options, methods, models and
targets after one of these lines, which belong in its start-up file:

\b
  eval "$(_LMMPRUNE_COMPLETE=bash_source lmmprune)"
  eval "$(_LMMPRUNE_COMPLETE=zsh_source lmmprune)"
  _LMMPRUNE_COMPLETE=fish_source lmmprune | source
"""


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"lmmprune.compiler.cli.{cmd_name}")
        command: click.Command = module.command
        present = {name for parameter in command.params for name in parameter.opts}
        command.params += [one for one in general_options() if not present & {*one.opts}]
        set_variables(command, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] in RENAMED:
            old, args = args[0], [RENAMED[args[0]], *args[1:]]
            if not ctx.resilient_parsing:
                warn(f"'lmmprune {old}' is called 'lmmprune {args[0]}' now; the next release doesn't know the old name")
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            raise click.UsageError(f"no command '{args[0]}'{suggestion(args[0], COMMANDS)}")
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None and not ctx.resilient_parsing:
            from lmmprune.compiler.cli.given import refuse_repeated

            refuse_repeated(name, command, ctx, rest)
        return name, command, rest

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
    epilog=_EPILOG,
)
@click.version_option(__version__, prog_name="lmmprune")
@click.option(
    *("-v", "--verbose"),
    is_flag=True,
    expose_value=False,
    callback=remember_verbose,
    hidden=True,
    envvar="LMMPRUNE_VERBOSE",
)
@click.option(
    *("-q", "--quiet"),
    is_flag=True,
    expose_value=False,
    callback=remember_quiet,
    hidden=True,
    envvar="LMMPRUNE_QUIET",
)
@click.pass_context
def app(ctx: click.Context) -> None:
    """Prune visual tokens inside the graph of a large multimodal model, quantize it, compile it."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; a user's mistake is one line on stderr and exit code 2.

    With ``--json`` it is a JSON document on stdout too: ``{"error": ...}``, with what was done before it.
    """
    WANTED.reset()
    mend_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    with remembered() as signals:
        try:
            check_words(words)
            with one_line_warnings():
                result: Any = app.main(args=words, prog_name="lmmprune", standalone_mode=False)
            code = (result if isinstance(result, int) else 0) or flush()
        except BaseException as error:  # noqa: BLE001  # whatever it is, it is said
            code = _say(error, words, signals)
    sys.exit(code)


def _say(error: BaseException, words: Sequence[str], signals: Signals) -> int:
    """Say why a command ended; return its exit code."""
    if signals.number == signal.SIGTERM:
        return _fail(f"terminated; {_left(words)}", 128 + signal.SIGTERM, words)
    # Ctrl-C in C code that is imported comes out as a module that can't be.
    if signals.number == signal.SIGINT or isinstance(error, KeyboardInterrupt | click.Abort):
        return _fail(f"interrupted; {_left(words)}", 130, words)
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, click.UsageError):
        return _fail(f"{_message(error)} (see '{_program(error, words)} --help')", 2, words)
    if isinstance(error, click.ClickException):
        return _fail(_message(error), 2, words)
    known = isinstance(error, LmmpruneError)
    refused = isinstance(error, OSError) and error.errno is not None
    if WANTED.traceback or not (known or refused):
        traceback.print_exception(error)
    if isinstance(error, LmmpruneError):
        return _fail(str(error), 2, words, error.made)
    if isinstance(error, OSError) and error.errno is not None:
        return _fail(_refused(error), 2, words)
    return _fail("this is a mistake of lmmprune, not yours: please report it with the lines above", 1, words)


def _refused(error: OSError) -> str:
    """Return what the system didn't let us do."""
    if error.filename is None:
        return f"the system refuses ({error.strerror}): is there room on the disk, and can stdout be written?"
    return f"'{error.filename}' can't be used ({error.strerror}): may you read it, or write there, and is there room?"


def _message(error: click.ClickException) -> str:
    """Return click's words as our own errors are written."""
    said = " ".join(error.format_message().split()).rstrip(".")
    return said[:1].lower() + said[1:]


def _program(error: click.UsageError, argv: Sequence[str]) -> str:
    """Return the command whose help says more."""
    if error.ctx is not None:
        return error.ctx.command_path
    called = next((word for word in argv if word in COMMANDS), None)
    return "lmmprune" if called is None else f"lmmprune {called}"


def _left(argv: Sequence[str]) -> str:
    """Return what an interrupted command leaves behind."""
    if "--resume" in argv:
        return "what was written is kept, the same command goes on from there"
    resumable = " (with --resume, what was written is kept to go on from)" if "export" in argv[:1] else ""
    return f"nothing is left half-written{resumable}"


def _fail(message: str, code: int, words: Sequence[str], made: Mapping[str, Any] = MappingProxyType({})) -> int:
    begin = "lmmprune: error: "
    line = one_line(message, most=_LONGEST - len(begin))
    with contextlib.suppress(OSError):
        print(begin + line, file=sys.stderr)
    try:
        if "--json" in words:
            print(json.dumps({"error": line, **made}))
        flush()
    except (OSError, LmmpruneError):
        drop()
    return code
