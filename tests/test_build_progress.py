"""The builder says how far it is, stops on Ctrl-C, and says nothing where it has no monitor."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import runtime_fixtures as fx

from lmmprune.compiler.build import compile_engine as tensorrt
from lmmprune.compiler.build.build import build
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.cli import main
from lmmprune.compiler.targets.targets import resolve

RTX = resolve("tensorrt-rtx")
trt = pytest.importorskip("tensorrt_rtx")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return fx.make_bundle(tmp_path / "out", keep=8, dtype="float16", target="tensorrt-rtx")


def test_phases_and_steps_are_told(bundle: Bundle) -> None:
    told: list[tuple[str, int, int]] = []
    build(bundle.path, "rtx", arch="sm89", step=lambda *one: told.append(one))
    assert {what.split(": ")[0] for what, _, _ in told} == {"vision", "decoder"}
    assert len({what for what, _, _ in told}) > 4
    assert all(0 <= done <= of for _, done, of in told)
    assert any(done == of for _, done, of in told)
    # A phase that lies in another one is shown before that one goes on.
    names = [what for what, _, _ in told if what.startswith("decoder")]
    assert names[0] == "decoder: Building engine"
    assert "decoder: Building engine" in names[2:]


def test_ctrl_c_stops_the_builder(bundle: Bundle) -> None:
    told: list[str] = []

    def stop(what: str, done: int, of: int) -> None:
        told.append(what)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        tensorrt.build_engine(RTX, bundle.vision, arch="sm89", step=stop)
    assert signal.getsignal(signal.SIGINT) is before
    assert len(told) == 1


def test_a_display_that_fails_stops_the_builder(bundle: Bundle) -> None:
    def fail(what: str, done: int, of: int) -> None:
        raise OSError("the terminal is gone")

    with pytest.raises(OSError, match="the terminal is gone"):
        tensorrt.build_engine(RTX, bundle.vision, arch="sm89", step=fail)


def test_a_builder_without_monitor_builds(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(trt, "IProgressMonitor")
    told: list[str] = []
    engine = tensorrt.build_engine(RTX, bundle.vision, arch="sm89", step=lambda what, done, of: told.append(what))
    assert engine.plan.nbytes > 1000
    assert told == []


def test_json_stays_clean(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["build", str(bundle.path), "--arch", "sm89", "--component", "vision", "--json"])
    assert stop.value.code == 0
    printed = capsys.readouterr()
    assert [row["component"] for row in json.loads(printed.out)["engines"]] == ["vision"]
    assert "Building engine" not in printed.err  # no terminal, no bar
