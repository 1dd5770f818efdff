"""What ``import lmmprune`` gives: light, lazy, typed, whole; and functions that have no tests of their own."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import runtime_fixtures as fx
from exports import exported
from test_imports import EXPORT_ONLY, HEAVY

import lmmprune
from lmmprune.errors import InputError, MissingExtraError

ROOT = Path(__file__).parents[1]


def modules_after(code: str, *arguments: str) -> set[str]:
    """Run code in a fresh process and return the top-level modules that it imported."""
    code = f"import json, sys\n{code}\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_import_is_light() -> None:
    assert modules_after("import lmmprune; dir(lmmprune)") & (HEAVY | EXPORT_ONLY | {"click"}) == set()


def test_answering_needs_no_export_package(tmp_path: Path) -> None:
    fx.make_bundle(tmp_path / "out", keep=4)
    picture = fx.save_picture(tmp_path / "p.png", 1)
    code = "import lmmprune\nwith lmmprune.load(sys.argv[1]) as model: assert model.ask(sys.argv[2], 'hi?').text"
    modules = modules_after(code, str(tmp_path / "out"), str(picture))
    assert "onnxruntime" in modules, "it did run"
    assert modules & EXPORT_ONLY == set()
    assert "click" not in modules


API_OF_COMMAND = {
    "export": "export", "rewrite": "rewrite", "build": "build", "deploy": "deploy", "run": "load", "bench": "bench",
    "chat": "Conversation",
    "eval": "evaluate", "compare": "compare",
    "tune": "tune", "serve": "serve", "card": "card",
    "study": "study", "verify": "verify", "inspect": "inspect", "show": "show", "flops": "flops",
    "methods": "list_methods", "models": "list_models", "targets": "list_targets", "doctor": "doctor",
}  # fmt: skip


def test_no_command_does_what_python_cannot() -> None:
    from lmmprune.compiler.cli import COMMANDS

    assert {*COMMANDS} == {*API_OF_COMMAND}
    assert {*API_OF_COMMAND.values()} <= {*lmmprune.__all__}


def test_no_wish_of_a_request_is_missing() -> None:
    from lmmprune.compiler.export.request import Request
    from lmmprune.compiler.rewrite.rewrite import Request as Rewriting
    from lmmprune.compiler.study.request import StudyRequest
    from lmmprune.compiler.study.settings import Settings
    from lmmprune.compiler.study.timing import TimingSettings

    def missing(function: Callable[..., object], *requests: type[Any]) -> set[str]:
        wishes = {field.name for request in requests for field in dataclasses.fields(request)}
        return wishes - {*signature(function).parameters}

    assert missing(lmmprune.export, Request) == {"output"}
    assert missing(lmmprune.rewrite, Rewriting) == {"output", "ratio", "keep"}, "out, and tokens"
    assert missing(lmmprune.study, StudyRequest, Settings, TimingSettings) == {"output", "settings", "variants"}, (
        "out, theirs, and methods with their options"
    )


@pytest.mark.parametrize("name", sorted({*lmmprune.__all__} - {"__version__"}))
def test_every_name_is_there_and_documented(name: str) -> None:
    found = getattr(lmmprune, name)
    if name not in ("FinishReason", "Picture", "Progress"):  # types made of others have no docstring of their own
        assert (found.__doc__ or "").strip(), f"{name} has no docstring"


def test_no_other_name_is_found() -> None:
    assert len(lmmprune.__all__) == len({*lmmprune.__all__})
    assert dir(lmmprune) == sorted(lmmprune.__all__)
    assert {*lmmprune._HOME_OF, "errors", "__version__"} == {*lmmprune.__all__}
    with pytest.raises(AttributeError, match="'lmmprune' has no attribute 'nonsense'"):
        _ = lmmprune.nonsense  # type: ignore[attr-defined]  # that is the mistake
    names = [name for name in lmmprune.__all__ if importlib.util.find_spec(f"lmmprune.{name}")]
    assert names == ["errors"], "a module of the same name would take its place"


def test_a_method_without_the_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    monkeypatch.delitem(vars(lmmprune), "Method", raising=False)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'lmmprune[export]'")):
        _ = lmmprune.Method


def test_a_typed_program_passes_mypy_strict() -> None:
    """The package ships its types; the program uses every public name."""
    program = Path(__file__).with_name("typed_program.py")
    assert (Path(lmmprune.__file__).parent / "py.typed").is_file()
    used = {*re.findall(r"lmmprune\.(\w+)", program.read_text()), "Auto", "Buckets", "Int4", "Int8", "Keep", "Ratio"}
    assert {*lmmprune.__all__} - used == set()
    command = [sys.executable, "-m", "mypy", "--strict", "--warn-unused-ignores", str(program)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@dataclass(frozen=True, kw_only=True)
class Longest(lmmprune.Method):
    """Keep the patches whose features are longest."""

    p: int = 2

    name = "longest"
    reference = "an example"
    exactness = "exact"

    def filter(self, at: lmmprune.SiteContext) -> ir.Value:
        return at.b.op(f"ReduceL{self.p}", at.visual, [2], keepdims=0)


def test_a_method_of_ones_own_is_given_itself(tmp_path: Path) -> None:
    steps: list[str] = []
    report = lmmprune.export(
        "tiny-llava",
        tmp_path / "out",
        tokens=lmmprune.Keep(9),
        method=Longest(p=1),
        progress=lambda what, done, of: steps.append(what),
    )
    assert (report.manifest.method, report.manifest.parameters["p"]) == ("longest", 1)
    assert report.manifest.image_tokens == 9
    assert "trace" in steps
    found = lmmprune.inspect(tmp_path / "out")
    assert [graph["sites"][0]["tokens_out"] for graph in found["graphs"] if graph["sites"]] == [9]
    with pytest.raises(InputError, match="'longest' is given itself, and options beside it"):
        lmmprune.export("tiny-llava", tmp_path / "x", method=Longest(), options={"p": 1})


def test_options_may_be_values(tmp_path: Path) -> None:
    report = lmmprune.export(
        "tiny-llava", tmp_path / "out", tokens=lmmprune.Ratio(0.5), method="random", options={"seed": 7}
    )
    assert report.manifest.parameters["seed"] == 7


def test_measuring(tmp_path: Path) -> None:
    base = fx.make_bundle(tmp_path / "base").path
    pruned = fx.make_bundle(tmp_path / "pruned", keep=4).path
    picture = fx.save_picture(tmp_path / "p.png", 1, 5)
    told: list[tuple[int, int]] = []
    report = lmmprune.bench(
        [base, pruned],
        picture,
        "hi?",
        rounds=2,
        new_tokens=2,
        memory=False,
        progress=lambda w, d, of: told.append((d, of)),
    )
    assert [row.image_tokens for row in report.rows] == [16, 4]
    assert told == [(step, 8) for step in range(1, 9)]
    lmmprune.draw_chart(report, tmp_path / "bench.png")
    with pytest.raises(InputError, match=r"bench\.png"):
        lmmprune.draw_chart(report, tmp_path / "bench.png")
    with lmmprune.load(pruned) as model:
        said = model.ask(picture, "hi?", max_new_tokens=5).text
        row = {"image": "p.png", "prompt": "hi?", "answer": said}
        (tmp_path / "q.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "answer": "no"}))
        for bundle in (model, pruned):
            found = lmmprune.evaluate(bundle, tmp_path / "q.jsonl", max_new_tokens=5)
            assert (found.overall.correct, found.overall.total) == (1, 2)
        assert model.ask(picture, "hi?", max_new_tokens=5).text == said, "a model that was lent stays open"


def test_showing(tmp_path: Path) -> None:
    bundle = fx.make_bundle(tmp_path / "out", keep=4).path
    picture = fx.picture(1, 5, 6, 9)
    drawing = lmmprune.show(bundle, picture)
    assert drawing.kept.tolist() == [1, 5, 6, 9]
    assert drawing.drawn == ("vision_output",)
    lmmprune.show(bundle, picture, tmp_path / "x.png")
    with pytest.raises(InputError, match=r"x\.png"):
        lmmprune.show(bundle, picture, tmp_path / "x.png")


def test_flops_of_bundle_and_model() -> None:
    path, report = exported(ratio=0.5, method="fastv")
    assert lmmprune.flops(path)["flops"]["prefill"] == dict(report.manifest.flops["prefill"])
    found = lmmprune.flops_of_model("tiny-llava", lmmprune.Keep(10), trace_layers=1)
    assert found["visual_tokens"]["after"] == 10
    assert [row["layer"] for row in found["graph"]] == [0]


def test_lists_are_those_of_the_command_line() -> None:
    assert "fastv" in lmmprune.list_methods()
    assert lmmprune.list_models()["tiny-llava"].family in lmmprune.list_families()
    assert lmmprune.list_targets()["ort-cpu"].name == "ort-cpu"
    assert lmmprune.doctor().verdicts
