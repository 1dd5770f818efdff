"""Nothing is replaced unless ``--force`` says so, whichever command writes, and then only what such a command wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import exports
import pytest
import runtime_fixtures as fx

from lmmprune.compiler.bundle.replace import BOARD, BUNDLE, PLAN, REPOSITORY, STUDY, TUNING, check_directory, what_is_at
from lmmprune.compiler.cli import COMMANDS, app
from lmmprune.compiler.deploy.deploy import deploy
from lmmprune.compiler.deploy.write_plan import write_plan
from lmmprune.compiler.export.export import export
from lmmprune.compiler.export.request import Request
from lmmprune.compiler.study.charts import CHARTS
from lmmprune.compiler.study.folder import open_study
from lmmprune.compiler.study.write_file import write_text
from lmmprune.compiler.triton.repository import write_repository
from lmmprune.compiler.tune.folder import open_run
from lmmprune.errors import InputError
from lmmprune.models import canonical

Cli = Callable[..., tuple[int, str, str]]
PICTURE = Path(__file__).parents[1] / "models" / "tiny_llava" / "examples" / "scene_003.png"
JETSON = "jetson-orin-jp6"


def contents(path: Path) -> dict[str, str]:
    """Return the checksum of every file at or below a path."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles that commands read."""
    folder = tmp_path_factory.mktemp("sources")
    fx.make_bundle(folder / "trt", keep=8, dtype="float16", target="tensorrt-10.3")
    fx.make_bundle(folder / "cpu", keep=8)
    (folder / "q.jsonl").write_text(json.dumps({"image": str(PICTURE), "prompt": "hi", "answer": "x"}) + "\n")
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let exports share one trace."""
    exports.exported_again(ratio=0.5)  # has it
    monkeypatch.setattr(canonical, "canonical_graphs", lambda source, **_: exports.TRACED(source))


def arguments(what: str, sources: Path, path: Path) -> list[Any]:
    """Return the command that writes one kind of thing to a path."""
    cpu, trt = sources / "cpu", sources / "trt"
    ask = ("--image", PICTURE, "--prompt", "hi")
    table: dict[str, list[Any]] = {
        "bundle": ["export", "--model", "tiny-llava", "--ratio", 0.5, "-o", path],
        "plan": ["build", trt, "--plan-only", "-o", path],
        "board": ["deploy", trt, "--for", JETSON, "-o", path],
        "repository": ["build", cpu, "--triton", path],
        "drawing": ["show", cpu, "--image", PICTURE, "-o", path],
        "chart": ["bench", cpu, *ask, "--rounds", 2, "--new-tokens", 2, "--no-memory", "--chart", path],
        "predictions": ["eval", cpu, "--data", sources / "q.jsonl", "--max-new-tokens", 1, "--predictions", path],
    }
    return table[what]


SAYS = {
    "bundle": "holds a bundle of tiny-llava: give another directory, or --force to replace it",
    "plan": "holds a plan of trt: give another directory, or --force",
    "board": "holds a folder for a board with trt: give another directory, or --force",
    "repository": "holds a model repository of synthetic, whose configuration may have been edited: give another",
    "drawing": "exists: give another name, or --force to replace it",
    "chart": "exists: give another name, or --force to replace it",
    "predictions": "exists: give another name, or --force to replace it",
}
FOLDERS = ("bundle", "plan", "board", "repository")


@pytest.mark.parametrize("what", SAYS)
def test_a_command_replaces_with_force_only(what: str, sources: Path, tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "out"
    if what not in FOLDERS:
        path = path.with_suffix(".png")
    command = arguments(what, sources, path)
    if what in FOLDERS:
        path.mkdir()  # an empty directory is as good as none
    assert cli(*command)[0] == 0
    before = contents(path)
    code, out, err = cli(*command)
    assert (code, out) == (2, "")
    assert SAYS[what] in err
    assert err.count("\n") == 1
    assert contents(path) == before
    file = next(iter(before))
    Path(file).write_text("edited")
    assert cli(*command, "--force")[0] == 0
    assert Path(file).read_bytes() != b"edited"
    assert contents(path).keys() == before.keys()


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("what", FOLDERS)
def test_what_lmmprune_did_not_write_stays(what: str, force: bool, sources: Path, tmp_path: Path, cli: Cli) -> None:
    command = [*arguments(what, sources, tmp_path / "out"), *(["--force"] * force)]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    code, _, err = cli(*command)
    assert code == 2
    assert "isn't empty and isn't a" in err
    assert "move away what is there" in err
    (tmp_path / "out" / "thesis.tex").unlink()
    assert cli(*command)[0] == 0
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    code, _, err = cli(*command)
    assert code == 2
    assert "holds 'thesis.tex', which isn't part of" in err
    assert (tmp_path / "out" / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize("what", FOLDERS)
def test_a_file_or_another_kind_is_in_the_way(what: str, sources: Path, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "out").write_text("precious")
    code, _, err = cli(*arguments(what, sources, tmp_path / "out"), "--force")
    assert code == 2
    assert "is a file: give a directory for the" in err
    with open_study(tmp_path / "study", {"model": "tiny-llava"}, {}):
        pass
    before = contents(tmp_path / "study")
    code, _, err = cli(*arguments(what, sources, tmp_path / "study"), "--force")
    assert code == 2
    assert "holds a study of tiny-llava with 0 finished variants, not a" in err
    assert contents(tmp_path / "study") == before


@pytest.mark.parametrize("what", ["plan", "board"])
def test_what_is_read_is_not_written_over(what: str, sources: Path, cli: Cli) -> None:
    before = contents(sources)
    for path in (sources / "trt", sources / "trt" / "below", sources):
        code, _, err = cli(*arguments(what, sources, path), "--force")
        assert code == 2
        assert "lie inside of each other" in err
    assert contents(sources) == before


def test_a_bundle_is_refused_before_the_model_is_read(tmp_path: Path) -> None:
    fx.make_bundle(tmp_path / "out")
    with pytest.raises(InputError, match="holds a bundle of synthetic: "):
        export(Request(model="no-such-model", output=tmp_path / "out"))


def test_kinds_and_what_they_hold(sources: Path, tmp_path: Path) -> None:
    bundle = fx.make_bundle(tmp_path / "bundle", keep=8, dtype="float16", target="tensorrt-10.3")
    for arch, component in (("sm87", "vision"), ("sm87", "decoder"), ("sm110", "vision")):
        folder = bundle.path / "engines" / f"tensorrt-10.3-{arch}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{component}.engine").touch()
        (folder / "engine.json").touch()
    plan = write_plan([bundle.path], JETSON, tmp_path / "plan").folder
    for name in ("engines/bundle/vision.engine", "logs/runs.json", "result.json"):
        (plan / name).parent.mkdir(parents=True, exist_ok=True)
        (plan / name).touch()
    board = deploy(bundle.path, JETSON, tmp_path / "board").folder
    (board / "bundle" / "engines" / "tensorrt-10.3-sm87").mkdir(parents=True)
    (board / "bundle" / "engines" / "tensorrt-10.3-sm87" / "vision.engine").touch()
    served = write_repository(fx.make_bundle(tmp_path / "cpu"), tmp_path / "served").path
    found = {path.name: what_is_at(path) for path in (bundle.path, plan, board, served, tmp_path)}
    assert found.pop(tmp_path.name) is None
    assert {name: (one.kind, one.foreign) for name, one in found.items() if one} == {
        "bundle": (BUNDLE, None),
        "plan": (PLAN, None),
        "board": (BOARD, None),
        "served": (REPOSITORY, None),
    }
    texts = {name: one.text for name, one in found.items() if one}
    assert texts["bundle"] == "a bundle of synthetic with 3 engines"
    assert texts["plan"] == "a plan of bundle and its result.json"


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "study"
    with open_study(path, {"model": "a"}, {}) as folder:
        for name in ("cells/fastv-0.5/result.json", "report.html", "results.csv", *(f"{one}.png" for one in CHARTS)):
            write_text(folder.path / name, "{}")
    (path / ".report.html.12ab34cd.tmp").touch()  # of a process that was killed
    return path


def test_a_study_goes_on_and_begins_anew_with_force(study: Path) -> None:
    found = what_is_at(study)
    assert found is not None
    assert (found.kind, found.foreign) == (STUDY, None)
    assert found.text == "a study of a with 1 finished variant"
    with open_study(study, {"model": "a"}, {}):
        assert (study / "cells/fastv-0.5/result.json").is_file()
    with pytest.raises(InputError, match="another folder, or --force to begin anew"), open_study(study, {"m": "b"}, {}):
        pass
    with open_study(study, {"model": "b"}, {}, force=True):
        assert sorted(path.name for path in study.iterdir()) == ["study.json"]
    (study / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"holds 'thesis\.tex'"), open_study(study, {"model": "b"}, {}, force=True):
        pass
    assert (study / "study.json").is_file()


def test_a_tuning_goes_on_and_begins_anew_with_force(tmp_path: Path) -> None:
    path = tmp_path / "tuned"
    with open_run(path, {"model": "a"}) as folder:
        for name in ("cells/fastv-0.5.json", "schedules/x.json", "answers/y.npz", "report.html", "front.csv"):
            write_text(folder / name, "{}")
    found = what_is_at(path)
    assert found is not None
    assert (found.kind, found.foreign, found.text) == (TUNING, None, "a tuning of a")
    with open_run(path, {"model": "a"}):
        assert (path / "cells/fastv-0.5.json").is_file()
    with pytest.raises(InputError, match=r"a tuning of something else, .*--force to begin anew"):
        open_run(path, {"model": "b"}).__enter__()
    with open_run(path, {"model": "b"}, force=True):
        assert sorted(one.name for one in path.iterdir()) == ["tune.json"]
    (path / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"holds 'thesis\.tex'"):
        open_run(path, {"model": "b"}, force=True).__enter__()


def test_a_pipe_is_no_file(sources: Path, cli: Cli) -> None:
    assert cli(*arguments("predictions", sources, Path("/dev/null")))[0] == 0


def test_every_command_that_writes_has_force() -> None:
    """An option that names a path and whose help says so writes to it."""
    context = app.make_context("lmmprune", [], resilient_parsing=True)
    writes = {"output", "triton", "chart", "predictions", "page"}
    commands = {name: app.get_command(context, name) for name in COMMANDS}
    for name, command in commands.items():
        assert command is not None
        options = {str(parameter.name) for parameter in command.params}
        assert ("force" in options) == bool(options & writes), name


def test_a_folder_that_cant_be_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: Path) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", closed)
    with pytest.raises(InputError, match="can't be looked into \\(Permission denied\\)"):
        check_directory(tmp_path, BUNDLE, force=False)
