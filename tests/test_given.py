"""Nothing on the command line is ignored: repeated options, options without effect, sizes without a unit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
import runtime_fixtures as fx
from short_request import short_request

from lmmprune.compiler.cli import COMMANDS, app
from lmmprune.compiler.cli.values import size
from lmmprune.compiler.export.export import export
from lmmprune.errors import InputError

Cli = Callable[..., tuple[int, str, str]]
EXPORT = ("export", "--model", "tiny-llava", "-o", "out")


def options(*, repeatable: bool) -> Iterator[tuple[str, str]]:
    """Yield command and option, as ``("run", "--image")``."""
    context = app.make_context("lmmprune", [], resilient_parsing=True)
    for name in COMMANDS:
        command = app.get_command(context, name)
        assert command is not None
        for option in command.params:
            flag = isinstance(option, click.Option) and option.is_flag and not option.secondary_opts
            if isinstance(option, click.Option) and (option.multiple or flag) == repeatable:
                yield name, option.opts[0]


@pytest.mark.parametrize(("command", "option"), options(repeatable=False))
def test_an_option_with_one_value_is_given_once(command: str, option: str, cli: Cli) -> None:
    context = app.make_context("lmmprune", [], resilient_parsing=True)
    found = app.get_command(context, command)
    assert found is not None
    parameter = next(one for one in found.params if option in one.opts)
    twice = [option, parameter.secondary_opts[0]] if parameter.secondary_opts else [option, "a", option, "b"]
    code, out, err = cli(command, *twice)
    assert (code, out) == (2, "")
    assert "is given 2 times, and one is taken: leave the others out (see '" in err
    assert f" {command} --help')" in err
    assert max(parameter.opts, key=len) in err


def test_what_may_be_given_twice(cli: Cli) -> None:
    found = set(options(repeatable=True))
    assert {("export", "--set"), ("export", "--keep-float"), ("build", "--component"), ("export", "--int8")} <= found
    # Both say the same: the refusal is about what comes next.
    assert "'nowhere' doesn't exist" in cli("run", "nowhere", "--image", "x", "--prompt", "x", "--stats", "--stats")[2]


def test_short_and_long_names_are_one_option(cli: Cli) -> None:
    assert "--output is given 2 times" in cli(*EXPORT, "--output", "b")[2]
    assert "--output is given 3 times" in cli(*EXPORT, "--output=b", "-oc")[2]


def test_help_comes_before_everything(cli: Cli) -> None:
    code, out, _ = cli("run", "x", "--image", "a", "--image", "b", "--help")
    assert code == 0
    assert "Answer a question about a picture" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (*EXPORT, "--method", "fastv"),
            "--method says how tokens are removed: add --ratio R, --keep K, --buckets or --schedule",
        ),
        ((*EXPORT, "--set", "a=1"), "--set says how tokens are removed"),
        ((*EXPORT, "--method-file", "m.py"), "--method-file says how tokens are removed"),
        ((*EXPORT, "--positions", "original"), "--positions says how tokens are removed"),
        ((*EXPORT, "--keep", 9, "--set", "a=1", "--set", "a=2"), "--set a is given as 1 and as 2, and one is taken"),
        ((*EXPORT, "--ratio", 0.5, "--percentile", 50), "--percentile is for --ratio auto: leave it out"),
        ((*EXPORT, "--ratio", 0.5, "--keep", 9), "--ratio and --keep exclude each other"),
        ((*EXPORT, "--ratio", "auto", "--keep", 9), "--ratio and --keep exclude each other"),
        ((*EXPORT, "--ratio", "auto", "--buckets", "0.5,0.75"), "--ratio and --buckets exclude each other"),
        ((*EXPORT, "--calib", "x"), "--calib is for what looks at pictures first, --int8, --ratio auto and --buckets"),
        ((*EXPORT, "--int8-dynamic", "--calib-samples", 2), "--calib-samples is for what looks at pictures first"),
        ((*EXPORT, "--no-smooth"), "--no-smooth says how to quantize: add --int8"),
        ((*EXPORT, "--smooth"), "--smooth says how to quantize: add --int8"),
        ((*EXPORT, "--calibrator", "minmax"), "--calibrator says how to quantize: add --int8"),
        ((*EXPORT, "--int8-policy", "all"), "--int8-policy says how to quantize: add --int8"),
        ((*EXPORT, "--keep-float", "vision:x"), "--keep-float says how to quantize: add --int8"),
        ((*EXPORT, "--int8-budget", 0.1), "--int8-budget says how to quantize: add --int8"),
        ((*EXPORT, "--int8", "--int8-budget", 0.1), "--int8-budget is what --int8-policy auto allows: add that"),
        ((*EXPORT, "--int8-weights-only", "--no-smooth"), "--no-smooth is about ranges that are measured before"),
        ((*EXPORT, "--int8-dynamic", "--calibrator", "mse"), "and --int8-dynamic has none: leave it out"),
        ((*EXPORT, "--int8", "--int8-dynamic"), "--int8 and --int8-dynamic exclude each other"),
        ((*EXPORT, "--int8", "--int8-weights-only"), "--int8 and --int8-weights-only exclude each other"),
        (
            (*EXPORT, "--int8-dynamic", "--int8-weights-only"),
            "--int8-weights-only and --int8-dynamic exclude each other",
        ),
        (
            (*EXPORT, "--int8", "--int8-dynamic", "--int8-weights-only", "--calib", "x"),
            "--int8 and --int8-weights-only and --int8-dynamic exclude each other, each is a way to quantize: give one",
        ),
        ((*EXPORT, "--layers", 2), "--layers needs --weights dummy"),
        (("rewrite", "x.onnx", "-o", "y.onnx", "--method", "tome"), "--method says how tokens are removed"),
        (("flops", "--model", "tiny-llava", "--method", "fastv"), "--method says how tokens are removed"),
        (("study", "--model", "tiny-llava", "-o", "x", "--ray", "a", "--workers", 2), "--workers is for this machine"),
        (("bench", "--import", "x", "--rounds", 3), "--rounds says how to measure, and --import shows what was"),
        (("bench", "--import", "x", "--no-memory"), "--no-memory says how to measure"),
        (("bench", "x", "--image", "x", "--prompt", "x", "--force"), "--force is for a chart: add --chart FILE"),
        (("eval", "x", "--data", "x", "--force"), "--force is for predictions: add --predictions FILE"),
        (
            ("build", "{cpu}", "--triton", "r", "--workspace", "1GiB"),
            "--workspace is for engines, and 'ort-cpu' has none",
        ),
        (("build", "{cpu}", "--triton", "r", "--refit"), "--refit is for engines, and 'ort-cpu' has none"),
        (
            ("build", "{cpu}", "--plan-only", "-o", "p", "--triton-backend", "python"),
            "--triton-backend goes with --triton",
        ),
        (("deploy", "x", "--for", "jetson-orin-jp6", "-o", "y", "--ram", "8"), "'8' would be 8 bytes: write 8GiB"),
    ],
)
def test_what_would_be_ignored_is_refused(
    arguments: tuple[object, ...], message: str, cpu: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = cli(*(str(argument).format(cpu=cpu) for argument in arguments))
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def cpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fx.make_bundle(tmp_path_factory.mktemp("given") / "cpu", keep=8).path


def test_a_question_that_changes_no_drawing_is_said(cpu: Path, tmp_path: Path, cli: Cli) -> None:
    fx.picture(1).save(tmp_path / "p.png")
    words = ("show", cpu, "--image", tmp_path / "p.png", "-o", tmp_path / "x.png")
    assert "--prompt changes nothing" in cli(*words, "--prompt", "hi")[2]
    assert "--prompt" not in cli(*words, "--force")[2]


def test_two_ways_to_quantize_are_refused_without_the_command_line_too(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--int8-weights-only and --int8-dynamic exclude each other"):
        export(short_request(model="tiny-llava", output=tmp_path / "out", int8_weights_only=True, int8_dynamic=True))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8GiB", 8 * 2**30),
        ("8gb", 8 * 2**30),
        ("8G", 8 * 2**30),
        ("1.5GiB", 3 * 2**29),
        ("512 MiB", 2**29),
        ("64KiB", 2**16),
        ("1048576", 2**20),
        ("8B", 8),
        ("8", "'8' would be 8 bytes: write 8GiB if that is meant"),
        ("128", "write 128GiB"),
        ("512", "write 512MiB"),
        ("8192", "write 8192MiB"),
        ("1048575", "write 1048575B"),
        ("0", "isn't a size: write 8GiB"),
        ("0GiB", "isn't a size"),
        ("-8GiB", "isn't a size"),
        ("1.5", "isn't a size"),
        ("lots", "isn't a size"),
    ],
)
def test_sizes(text: str, expected: int | str) -> None:
    if isinstance(expected, int):
        assert size(text) == expected
        return
    with pytest.raises(click.BadParameter) as caught:
        size(text)
    assert expected in caught.value.message
