"""Options from a file and from the environment: who beats whom, and that nothing of them is ignored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import runtime_fixtures as fx

from lmmprune.compiler.cli import COMMANDS, app, config
from lmmprune.compiler.cli.config import options_of, read_options
from lmmprune.errors import InputError

Cli = Callable[..., tuple[int, str, str]]


def command_of(name: str) -> click.Command:
    context = app.make_context("lmmprune", [], resilient_parsing=True)
    found = app.get_command(context, name)
    assert found is not None
    return found


def parsed(name: str, *arguments: str) -> dict[str, object]:
    """Return what a command is called with."""
    context = app.make_context("lmmprune", [], resilient_parsing=True)
    return command_of(name).make_context(name, [*arguments], parent=context).params


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "export.toml"
    path.write_text(
        'model = "tiny-llava"\noutput = "from-file"\nratio = 0.5\nint8 = true\nsmooth = false\n'
        'keep-float = ["decoder:lm_head", "vision:patch"]\nbuckets = [0.5, 0.75]\ncalib-samples = 4\n'
    )
    return path


def test_a_file_gives_every_kind_of_option(file: Path) -> None:
    found = parsed("export", "--config", str(file))
    assert (found["model"], found["output"], found["ratio"]) == ("tiny-llava", Path("from-file"), "0.5")
    assert (found["int8"], found["smooth"], found["calib_samples"]) == (True, False, 4)
    assert found["keep_float"] == ("decoder:lm_head", "vision:patch")
    assert found["buckets"] == "0.5,0.75"


def test_the_command_line_beats_the_environment_which_beats_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMMPRUNE_EXPORT_RATIO", "0.25")
    monkeypatch.setenv("LMMPRUNE_EXPORT_OUTPUT", "from-environment")
    monkeypatch.setenv("LMMPRUNE_EXPORT_KEEP_FLOAT", "a:b c:d")
    monkeypatch.setenv("LMMPRUNE_EXPORT_SMOOTH", "true")
    found = parsed("export", "--config", str(file), "--ratio", "0.75")
    assert (found["ratio"], found["output"]) == ("0.75", Path("from-environment"))
    assert (found["keep_float"], found["smooth"]) == (("a:b", "c:d"), True)
    assert (found["model"], found["calib_samples"]) == ("tiny-llava", 4)
    monkeypatch.setenv("LMMPRUNE_EXPORT_CONFIG", str(file))
    assert parsed("export")["buckets"] == "0.5,0.75"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_variable_of_its_own(name: str) -> None:
    variables = {key: option.envvar for key, option in options_of(command_of(name)).items()}
    assert len({*variables.values()}) == len(variables)
    for key, variable in variables.items():
        assert variable == f"LMMPRUNE_{name.upper()}_{key.upper().replace('-', '_')}"
    # The cache's folder and the switches of all commands are no option of one command.
    assert not {*variables.values()} & {"LMMPRUNE_CACHE", "LMMPRUNE_VERBOSE", "LMMPRUNE_QUIET"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ratoi = 0.5", "'export' has no option 'ratoi'; did you mean 'ratio'?"),
        ("pairs = ['a=1']", "'export' has no option 'pairs'; known: adapter"),
        ("no-smooth = true", "'export' has no option 'no-smooth'; did you mean 'smooth'?"),
        ("[export]\nratio = 0.5", "'export' has no option 'export'"),
        ("config = 'x'", "'export' has no option 'config'"),
        ("ratio = [0.5, 0.6]", "ratio = [0.5, 0.6]: expected one value"),
        ("ratio = true", "ratio = true: expected one value"),
        ("ratio = 2026-01-01", "ratio = 2026-01-01: expected one value"),
        ("ratio = {a = 1}", "expected one value"),
        ("int8 = 'yes'", "int8 = 'yes': expected true or false"),
        ("int8 = 1", "int8 = 1: expected true or false"),
        ("set = [['a']]", "set = [['a']]: expected a list, such as [\"NAME=VALUE\"]"),
        ("set = 'layer=3'", "says how tokens are removed: add --ratio R"),
        ("ratio 0.5", "it isn't TOML (Expected '='"),
        ("ratio = 0.5\nratio = 0.6", "it isn't TOML"),
        ("layers = 'many'", "'many': expected a whole number"),
        ("dtype = 'int4'", "'int4' is not one of"),
    ],
)
def test_mistakes_of_a_file_are_one_line(cli: Cli, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "export.toml"
    path.write_text(text)
    code, out, err = cli("export", "--model", "tiny-llava", "-o", tmp_path / "out", "--config", path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not (tmp_path / "out").exists()


def test_a_file_that_isnt_there(cli: Cli, tmp_path: Path) -> None:
    code, _, err = cli("run", "x", "--config", tmp_path / "none.toml")
    assert (code, err.count("\n")) == (2, 1)
    assert "it can't be read (No such file or directory)" in err


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="it isn't TOML"):
        read_options(tmp_path / "x.toml", command_of("run"))


def test_a_variable_of_no_option_is_refused(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMMPRUNE_EXPORT_RATOI", "0.5")
    code, _, err = cli("export", "--model", "tiny-llava", "-o", "out")
    assert (code, err.count("\n")) == (2, 1)
    assert "LMMPRUNE_EXPORT_RATOI is set, and 'export' has no such option; did you mean 'LMMPRUNE_EXPORT_RATIO'?" in err
    # It is none of another command's business.
    assert "doesn't exist" in cli("run", "nowhere", "--image", "x", "--prompt", "x")[2]


def test_what_would_be_ignored_is_refused_wherever_it_stands(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "export.toml"
    path.write_text("int8-budget = 0.1")
    words = ("export", "--model", "tiny-llava", "-o", tmp_path / "out")
    _, _, err = cli(*words, "--config", path)
    assert f"--int8-budget (in '{path}') says how to quantize: add --int8" in err
    monkeypatch.setenv("LMMPRUNE_EXPORT_METHOD", "fastv")
    _, _, err = cli(*words)
    assert "--method (set by LMMPRUNE_EXPORT_METHOD) says how tokens are removed: add --ratio R" in err
    monkeypatch.setenv("LMMPRUNE_BENCH_ROUNDS", "3")
    assert "--rounds (set by LMMPRUNE_BENCH_ROUNDS) says how to measure" in cli("bench", "--import", "x")[2]


def test_a_command_runs_from_a_file_alone(cli: Cli, tmp_path: Path) -> None:
    bundle = fx.make_bundle(tmp_path / "bundle", keep=4)
    fx.save_picture(tmp_path / "p.png", 3)
    path = tmp_path / "run.toml"
    path.write_text(f'image = "{tmp_path / "p.png"}"\nprompt = "hi"\nmax-new-tokens = 3\njson = true\n')
    code, out, _ = cli("run", bundle.path, "--config", path)
    assert code == 0
    assert len(json.loads(out)["tokens"]) == 3


def test_completion_reads_no_file(tmp_path: Path) -> None:
    context = command_of("export").make_context(
        "export", ["--config", str(tmp_path / "none.toml")], resilient_parsing=True
    )
    assert context.default_map is None
    assert config.CONFIG not in context.meta
