"""Tables on narrow terminals: columns are left out, words stay whole; the same for every command that prints one."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import exports
import pytest
import runtime_fixtures as fx
from rich.console import Console, ConsoleOptions, RenderResult
from study_fixtures import made_up

from lmmprune.compiler.build.build import Built
from lmmprune.compiler.bundle.engines import EngineRecord
from lmmprune.compiler.cli.table import Column, Table, details, table
from lmmprune.compiler.study.run_study import StudyResult
from lmmprune.compiler.verify.verify import Check
from lmmprune.models import canonical

Cli = Callable[..., tuple[int, str, str]]
WIDTHS = (60, 80, 120)


def printed(item: Any, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), highlight=False)
    console.print(item)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]


def test_columns_go_in_their_order() -> None:
    columns = ["name", Column(title="second", drop=1), Column(title="third", drop=2), "last"]
    made = table(columns, [["a" * 10, "b" * 10, "c" * 10, "d" * 10]])
    shown = {width: printed(made, width)[0].split() for width in (51, 50, 38, 37)}
    assert shown[51] == ["name", "second", "third", "last"]
    assert shown[50] == shown[38] == ["name", "second", "last"]
    assert shown[37] == ["name", "last"]
    assert " ".join(printed(made, 30)).endswith(
        "left out for the width: second, third (shown by a wider terminal, or --json)"
    )


def test_texts_are_broken_between_words_and_numbers_stand_on_the_right() -> None:
    made = table(["name", "what it is", "count"], [["x", "some words that are long", "7"], ["y", "few", "1,234"]])
    head, _, *rows = printed(made, 30)
    assert head == " name   what it is      count"
    assert rows == [" x      some words          7", "        that are long", " y      few             1,234"]


def test_cells_that_cant_fit_are_cut_where_one_sees_it() -> None:
    made = table(
        [Column(title="file", path=True), "why"], [["/a/long/path/to/some/engine.plan", "supercalifragilistic_word"]]
    )
    (row,) = printed(made, 30)[2:]
    file, why = row.split()
    assert len(row) <= 30
    assert file.startswith("…")
    assert "/a/long/path/to/some/engine.plan".endswith(file[1:])
    assert why.endswith("…")
    assert "supercalifragilistic_word".startswith(why[:-1])


def test_lines_of_a_cell_stay_lines() -> None:
    made = table([Column(title="name", most=8), "text"], [["one two three", "a\nb"]], gaps=True)
    assert printed(made, 80)[2:] == [" one two    a", " three      b"]


def test_details_are_broken_between_words() -> None:
    lines = printed(details({"name": "x", "what it does": "some words that need two lines"}), 40)
    assert lines == ["name          x", "what it does  some words that need two", "              lines"]


# --- every command ---------------------------------------------------------------------------------------------------

RECORD = EngineRecord(
    component="vision",
    target="tensorrt-rtx",
    arch="sm89",
    file="vision.engine",
    bytes=1 << 30,
    sha256="0",
    source={},
    builder="tensorrt_rtx",
    version="1.7.1.116",
    seconds=12.3,
    dtype="float16",
    int8="s8s8",
    profiles={},
    decomposed_attention=0,
)


@pytest.fixture
def made(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Bundles, a picture, questions, and stand-ins for what takes long."""
    folder = tmp_path_factory.mktemp("tables")
    fx.make_bundle(folder / "a_bundle_whose_name_is_longer_than_most")
    fx.make_bundle(folder / "pruned", keep=4)
    fx.make_bundle(folder / "rtx", keep=8, dtype="float16", target="tensorrt-rtx")
    fx.make_bundle(folder / "orin", keep=8, dtype="float16", target="tensorrt-10.3")
    fx.save_picture(folder / "p.png", 3, 5)
    (folder / "q.jsonl").write_text('{"image": "p.png", "prompt": "hi", "answer": "x", "kind": "k"}')

    def built(directory: str, *given: object, **more: object) -> list[Built]:
        path = Path(directory) / "engines/tensorrt-rtx-sm89/vision.engine"
        return [Built(record=RECORD, fresh=True, path=path), Built(record=RECORD, fresh=False, path=path)]

    def verified(*given: object, **more: object) -> list[Check]:
        found = "largest difference of logits 0.000123, of 12 positions; kept places equal"
        return [Check(name="checker decoder.onnx", passed=True, found=found)]

    def studied(*given: object) -> StudyResult:
        return StudyResult(findings=made_up()[0], files=(folder / "report.html",), reused=0)

    monkeypatch.setattr("lmmprune.compiler.build.build.build", built)
    monkeypatch.setattr("lmmprune.compiler.verify.verify.verify", verified)
    monkeypatch.setattr("lmmprune.compiler.study.run_study.run_study", studied)
    return folder


BUNDLES = ("{made}/a_bundle_whose_name_is_longer_than_most", "{made}/pruned")
ASKED = ("--image", "{made}/p.png", "--prompt", "hi")
COMMANDS: dict[str, tuple[str, ...]] = {
    "methods": ("methods",),
    "one method": ("methods", "sparsevlm"),
    "models": ("models",),
    "targets": ("targets",),
    "doctor": ("doctor",),
    "flops of a model": ("flops", "--model", "llava-1.5-7b", "--keep", "192"),
    "flops of a bundle": ("flops", "{made}/pruned"),
    "inspect": ("inspect", "{made}/pruned"),
    "bench": ("bench", *BUNDLES, *ASKED, "--rounds", "2", "--new-tokens", "2", "--no-memory"),
    "bench with kernels": ("bench", *BUNDLES, *ASKED, "--rounds", "2", "--new-tokens", "2", "--no-memory", "--explain"),
    "eval": ("eval", "{made}/pruned", "--data", "{made}/q.jsonl"),
    "deploy": ("deploy", "{made}/orin", "--for", "jetson-orin-jp6", "-o", "{out}/o"),
    "build": ("build", "{made}/rtx", "--arch", "sm89"),
    "verify": ("verify", "{made}/pruned"),
    "study": ("study", "--model", "tiny-llava", "-o", "{out}/s"),
    "export": ("export", "--model", "tiny-llava", "--method", "ficoco-vl", "--ratio", "0.5", "-o", "{out}/e"),
}


@pytest.fixture
def laid_out(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Table, int]]:
    """Collect the tables that are printed, with the widths that they were printed in."""
    found: list[tuple[Table, int]] = []
    before = Table.__rich_console__

    def spy(self: Table, console: Console, options: ConsoleOptions) -> RenderResult:
        found.append((self, options.max_width))
        return before(self, console, options)

    monkeypatch.setattr(Table, "__rich_console__", spy)
    return found


@pytest.mark.parametrize(
    ("case", "width"), [(case, width) for case in COMMANDS for width in WIDTHS if case != "export" or width == 80]
)
def test_no_command_breaks_a_word(
    case: str,
    width: int,
    made: Path,
    laid_out: list[tuple[Table, int]],
    cli: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    if case == "export":
        exports.exported_again(method="ficoco-vl", ratio=0.5)  # has the trace that the command shall take
        monkeypatch.setattr(canonical, "canonical_graphs", lambda source, **_: exports.TRACED(source))
    code, out, _ = cli(*(word.format(made=made, out=tmp_path) for word in COMMANDS[case]))
    assert code == 0
    assert laid_out
    plain = re.sub(r"\x1b\[[\d;]*m", "", out)
    words = set(plain.split())
    for each, available in [*laid_out]:
        assert available == width
        shown, widths = each.fit(width)
        assert max(map(len, printed(each, width))) <= width
        for row in [[column.title for column in each.columns], *each.rows]:
            for index, room in zip(shown, widths, strict=True):
                for word in row[index].split():
                    # Only what is longer than its whole column is cut, and says so.
                    assert word in words or (len(word) > room and "…" in plain), (word, room)
    if width >= 80:
        assert not re.search(r"\w…", plain), "at 80 columns nothing but a path is cut"


def test_files_and_pipes_get_all_columns(laid_out: list[tuple[Table, int]], cli: Cli) -> None:
    _, out, _ = cli("targets")
    assert {available for _, available in laid_out} == {160}
    assert "left out" not in out
    assert "\x1b" not in out
    assert "causal" in out


def test_long_lines_beside_a_table_are_broken_between_words_on_a_terminal(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    last = cli("models")[1].rstrip().splitlines()[-5:]
    assert max(map(len, last)) <= 60
    assert "--model also takes a hub id" in " ".join(last) or "also takes" in " ".join(last)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    assert any(line.startswith("--model also takes") and len(line) > 160 for line in cli("models")[1].splitlines())
