"""Progress in a log: lines now and then, with what is done, of how much, and the time left."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from lmmprune.compiler.cli import progress
from lmmprune.compiler.cli.progress import phases, steps
from lmmprune.compiler.cli.verbosity import WANTED
from lmmprune.progress import step


def clock(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let every look at the clock be so much later than the one before."""
    now = [0.0]

    def later() -> float:
        now[0] += seconds
        return now[0]

    monkeypatch.setattr(progress.time, "monotonic", later)


def test_short_work_leaves_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    with steps() as told:
        for done in range(5):
            told("trace", done, 5)
    assert capsys.readouterr() == ("", "")


def test_lines_of_a_log(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock(monkeypatch, progress.LINE_SECONDS)
    with steps({"weights"}) as told:
        told("layers", 0, 3)
        told("layers", 2, 3)
        told("weights", 3 << 29, 3 << 30)
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
    with phases() as told:
        for done in range(3):
            told("fast", done, 4)
        told("slow", 0, 4)
    *_, last = capsys.readouterr().err.splitlines()
    assert last == "slow: 0 of 4"


def test_phases_name_the_last(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock(monkeypatch, progress.LINE_SECONDS)
    with phases() as told:
        told("reading", 0, 1)
        told("building", 1, 4)
    assert capsys.readouterr().err.splitlines() == ["reading", "building: 1 of 4"]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Console:
    """A terminal of 80 columns that keeps what is drawn on it."""
    console = Console(width=80, force_terminal=True, file=io.StringIO(), color_system=None)
    monkeypatch.setattr(progress, "is_interactive", lambda: True)
    monkeypatch.setattr(progress, "_console", lambda: console)
    return console


def frames(console: Console) -> list[str]:
    """Return what stood on a terminal at each moment, without the codes that move the cursor."""
    assert isinstance(console.file, io.StringIO)
    drawn = re.split(r"(?:\x1b\[1A|\x1b\[2K|\r)+", console.file.getvalue())
    plain = [re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", frame).strip() for frame in drawn]
    return [frame for frame in plain if frame]


def test_a_step_without_parts_shows_no_count_and_ends_full(terminal: Console) -> None:
    with steps({"write"}) as told:
        with step(told, "trace"):
            pass
        told("calibrate", 0, 4)
        for done in range(4):
            told("calibrate", done + 1, 4)
        told("write", 0, 1 << 20)
        told("write", 1 << 20, 1 << 20)
        told("cast", 0, 1)  # nobody says that it is done
    *before, last = frames(terminal)
    assert not re.search(r"(?<![\d.])[01]/1(?![\d.])", "".join([*before, last]))
    rows = {line.split()[0]: line for line in last.splitlines()}
    assert [*rows] == ["trace", "calibrate", "write", "cast"]
    for line in rows.values():
        assert "━" * 20 in line, line  # BarColumn's whole width; a half bar ends in ╸
        assert "╸" not in line
    assert "4/4" in rows["calibrate"]
    assert "1.0/1.0 MiB" in rows["write"]


def test_a_step_that_fails_isnt_shown_as_done(terminal: Console) -> None:
    told: list[tuple[str, int, int]] = []
    with pytest.raises(ValueError, match="no"), step(lambda *one: told.append(one), "trace"):
        raise ValueError("no")
    assert told == [("trace", 0, 1)]

    def fail() -> None:
        with steps() as say:
            say("layers", 1, 4)
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert "1/4" in frames(terminal)[-1]


def test_phases_end_with_the_last_one_full(terminal: Console) -> None:
    with phases() as told:
        told("reading", 0, 1)
        told("building", 2, 4)
    assert frames(terminal)[-1].split()[0] == "building"
    assert "4/4" in frames(terminal)[-1]


@pytest.mark.parametrize("given", [{"TERM": "dumb"}, {"quiet": "yes"}])
def test_no_bars_where_they_arent_wanted(
    given: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", given.get("TERM", "xterm"))
    monkeypatch.setattr(WANTED, "quiet", "quiet" in given)
    clock(monkeypatch, progress.LINE_SECONDS)
    with steps() as told:
        told("layers", 1, 3)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ([] if WANTED.quiet else ["layers: 1 of 3"])
