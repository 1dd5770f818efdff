"""Progress in a log: lines now and then, with what is done, of how much, and the time left."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from lmmprune.compiler.cli import progress
from lmmprune.compiler.cli.progress import phases, steps


def clock(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let every look at the clock be so much later than the one before."""
    now = [0.0]

    def later() -> float:
        now[0] += seconds
        return now[0]

    monkeypatch.setattr(progress.time, "monotonic", later)


def test_short_work_leaves_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    with steps() as step:
        for done in range(5):
            step("trace", done, 5)
    assert capsys.readouterr() == ("", "")


def test_lines_of_a_log(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock(monkeypatch, progress.LINE_SECONDS)
    with steps({"weights"}) as step:
        step("layers", 0, 3)
        step("layers", 2, 3)
        step("weights", 3 << 29, 3 << 30)
    out, err = capsys.readouterr()
    first, second, third = err.splitlines()
    assert out == ""
    assert first == "layers: 0 of 3"
    assert second.startswith("layers: 2 of 3")
    assert third == "weights: 1.5 GiB of 3.0 GiB"


def test_the_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock(monkeypatch, progress.LINE_SECONDS)
    with progress.progress() as bar:
        now = [0.0]
        bar.get_time = lambda: now[0]  # type: ignore[method-assign]
        task = bar.add_task("layers", total=33)
        for done in range(4):
            now[0] = 60.0 * done
            bar.update(task, completed=done)
    assert capsys.readouterr().err.splitlines()[-1] == "layers: 3 of 33, about 30 min left"


def test_the_rate_of_what_counts_bytes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock(monkeypatch, progress.LINE_SECONDS)
    with progress.progress() as bar:
        now = [0.0]
        bar.get_time = lambda: now[0]  # type: ignore[method-assign]
        task = bar.add_task("write", total=8 << 30, bytes=True)
        for done in range(3):
            now[0] = 10.0 * done
            bar.update(task, completed=done << 30)
    assert capsys.readouterr().err.splitlines()[-1] == "write: 2.0 GiB of 8.0 GiB, 102.4 MiB/s, about 60 s left"


def test_a_terminal_gets_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the rate and the time left of bytes, and the count of everything else."""
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    bar = progress.progress()
    now = [0.0]
    bar.get_time = lambda: now[0]  # type: ignore[method-assign]
    tasks = bar.add_task("write", total=8 << 30, bytes=True), bar.add_task("layers", total=33)
    for done in range(3):
        now[0] = 10.0 * done
        bar.update(tasks[0], completed=done << 30)
        bar.update(tasks[1], completed=done)
    shown = Console(width=120, record=True, file=io.StringIO())
    shown.print(bar.make_tasks_table(bar.tasks))
    write, layers = shown.export_text().splitlines()
    assert "2.0/8.0 GiB 102.4 MiB/s 0:01:00" in " ".join(write.split())
    assert "2/33 0:05:10" in " ".join(layers.split())


def test_a_phase_has_its_own_speed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock(monkeypatch, progress.LINE_SECONDS)
    with phases() as step:
        for done in range(3):
            step("fast", done, 4)
        step("slow", 0, 4)
    *_, last = capsys.readouterr().err.splitlines()
    assert last == "slow: 0 of 4"


def test_phases_name_the_last(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock(monkeypatch, progress.LINE_SECONDS)
    with phases() as step:
        step("reading", 0, 1)
        step("building", 1, 4)
    assert capsys.readouterr().err.splitlines() == ["reading: 0 of 1", "building: 1 of 4"]
