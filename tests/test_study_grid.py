"""Cells, what makes two studies the same, the folder, and which cells are timed together."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import runtime_fixtures as fx
import study_fixtures as made
import study_jobs

from lmmprune.compiler.bundle.workplace import hold, sweep
from lmmprune.compiler.data.questions import Question
from lmmprune.compiler.study.cell_result import CellResult
from lmmprune.compiler.study.folder import Folder, open_study
from lmmprune.compiler.study.grid import UNPRUNED, Cell, grid
from lmmprune.compiler.study.kept_sets import load_kept, overlaps, save_kept
from lmmprune.compiler.study.local import run_locally
from lmmprune.compiler.study.run_cell import Job
from lmmprune.compiler.study.settings import Settings, identity
from lmmprune.compiler.study.timing import GROUP, Group, find_group, plan_groups
from lmmprune.compiler.study.variants import choose_variants, parse_settings
from lmmprune.compiler.study.write_file import write_text
from lmmprune.errors import BundleError, InputError, LmmpruneError
from lmmprune.passes.methods import find_methods

SETTINGS = Settings(
    model="m", data="d", limit=None, max_new_tokens=4, target="ort-cpu", calibration=None, calibration_samples=2
)


def test_the_unpruned_model_is_one_cell_per_precision() -> None:
    cells = grid(["random", "fastv", "random"], [0.5, 0, 0.25, 0.5], precisions=("fp", "int8"))
    names = [cell.name for cell in cells]
    assert names[:2] == ["unpruned", "unpruned-int8"]
    assert len(names) == len(set(names)) == 2 + 2 * 2 * 2
    assert "fastv-0.25-int8" in names
    assert [cell.name for cell in grid(["random"], [0.9])] == ["unpruned", "random-0.9"]
    three = grid(["random"], [0.5], precisions=("int4-gptq", "fp", "int4"))
    assert [cell.name for cell in three[:3]] == ["unpruned", "unpruned-int4", "unpruned-int4-gptq"]
    assert [cell.at("fp").name for cell in three[3:]] == ["random-0.5"] * 3
    assert [cell.quantized for cell in three] == [False, True, True] * 2


def test_names_of_cells_are_names_of_folders() -> None:
    assert Cell(method="prumerge+", ratio=0.1).name == "prumerge+-0.1"
    assert "/" not in Cell(method="../x", ratio=0.1).name


@pytest.mark.parametrize(
    ("precisions", "message"),
    [(["fp", "int2"], "--precisions int2: expected fp, int8, int4, int4-gptq"), (["int4"], "int4: add fp, with which")],
)
def test_bad_precisions(
    precisions: list[str], message: str, tmp_path: Path, cli: Callable[..., tuple[int, str, str]]
) -> None:
    with pytest.raises(InputError, match=message):
        grid(["random"], [0.5], precisions=precisions)
    arguments = ("study", "--model", "tiny-llava", "--limit", 1, "--no-timing", "-o", tmp_path / "s", "--precisions")
    code, _, err = cli(*arguments, ",".join(precisions))
    assert (code, message in err) == (2, True)
    assert cli(*arguments, "fp,int4", "--int8")[2].startswith("lmmprune: error: --int8 and --precisions say the same")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("methods", "ratios", "message"),
    [
        ([], [0.5], "--methods is empty"),
        (["random"], [], "--ratios is empty"),
        (["random"], [1.0], "0 <= ratio < 1"),
        (["random"], [-0.1], "0 <= ratio < 1"),
        (["random"], [float("nan")], "0 <= ratio < 1"),
    ],
)
def test_bad_grids(methods: list[str], ratios: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        grid(methods, ratios)


def question(*bright: int, prompt: str = "?") -> Question:
    return Question(picture="p", load=lambda: fx.picture(*bright), prompt=prompt, answers=("x",))


def test_identity_is_of_contents(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "w.safetensors").write_bytes(b"abc")
    one = identity(SETTINGS, tmp_path, [question(1)])
    assert one == identity(SETTINGS, tmp_path, [question(1)])
    assert one["data"] != identity(SETTINGS, tmp_path, [question(2)])["data"]
    assert one["data"] != identity(SETTINGS, tmp_path, [question(1, prompt="!")])["data"]
    (tmp_path / "w.safetensors").write_bytes(b"abd")
    assert one["checkpoint"] != identity(SETTINGS, tmp_path, [question(1)])["checkpoint"]


def test_a_study_of_something_else_is_refused_with_what_differs(tmp_path: Path) -> None:
    with open_study(tmp_path / "s", {"model": "a", "questions": "20"}, {}) as folder:
        write_text(folder.path / "cells" / "x" / "result.json", "{}")
    with open_study(tmp_path / "s", {"model": "a", "questions": "20"}, {"methods": ["more"]}):
        pass
    with (
        pytest.raises(InputError, match=r"differs in questions \(there 20, asked 40\): give another folder"),
        open_study(tmp_path / "s", {"model": "a", "questions": "40"}, {}),
    ):
        pass


def test_other_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="isn't a study"), open_study(tmp_path, {}, {}):
        pass
    with pytest.raises(InputError, match="is a file"), open_study(tmp_path / "notes.txt", {}, {}):
        pass
    (tmp_path / "study.json").write_text("[]")
    with pytest.raises(InputError, match="isn't the record of a study"), open_study(tmp_path, {}, {}):
        pass
    with pytest.raises(InputError, match="can't write below"), open_study(tmp_path / "notes.txt" / "s", {}, {}):
        pass
    with pytest.raises(InputError, match=r"can't write .* free some space"):
        write_text(tmp_path / "notes.txt" / "result.json", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "study.json"]


def test_one_process_at_a_time_and_what_was_killed_is_swept(tmp_path: Path) -> None:
    left = tmp_path / "bundles" / ".unpruned.partial"
    with open_study(tmp_path, {}, {}):
        left.mkdir(parents=True)
        with pytest.raises(InputError, match="another process is writing"), open_study(tmp_path, {}, {}):
            pass
        with hold(left.with_name("unpruned")):
            sweep(left.parent)
        assert left.exists(), "a living one's stays"
    with open_study(tmp_path, {}, {}):
        assert not left.exists()


def test_results_survive_the_disk(tmp_path: Path) -> None:
    folder = Folder(path=tmp_path)
    written = made.result(UNPRUNED, (0, 0, 1))
    assert written.first_word == (1, 0, 1)
    write_text(folder.cell(UNPRUNED) / "result.json", written.to_json())
    assert folder.result(UNPRUNED) == written
    assert folder.result(UNPRUNED.at("int8")) is None
    for text in ("", "[]", '{"format": 1}', json.dumps({**json.loads(written.to_json()), "format": 1})):
        with pytest.raises(BundleError, match="delete it, and it is made again"):
            CellResult.from_json(text, "result.json")


def test_overlap_of_kept_sets(tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    one = {"a": np.array([[0, 1, 2, 3], [0, 1, 2, 3]], np.int32), "only": np.zeros((2, 1), np.int32)}
    other = {"a": np.array([[3, 2, 1, 0], [0, 1, 8, -1]], np.int32)}
    save_kept(one, tmp_path / "kept.npz")
    assert load_kept(tmp_path / "none.npz") == {}
    (found,) = overlaps(load_kept(tmp_path / "kept.npz"), other)
    # Two of five patches; -1 is the place of no patch.
    assert (found.site, found.mean, found.lowest, found.pictures) == ("a", pytest.approx((1 + 0.4) / 2), 0.4, 2)


def test_groups_hold_the_baselines_and_whole_pairs() -> None:
    cells = grid(["a", "b", "c"], [0.25, 0.5, 0.75], precisions=("fp", "int8"))
    planned = plan_groups(cells, [])
    assert {cell for group in planned for cell in group} == set(cells)
    for group in planned:
        assert len(group) <= GROUP
        assert group[:2] == (UNPRUNED, UNPRUNED.at("int8"))
        pruned = [(cell.method, cell.ratio) for cell in group[2:]]
        assert pruned[::2] == pruned[1::2]
    timed = [Group(samples={cell.name: {} for cell in group}) for group in planned]
    assert plan_groups(cells, timed) == []
    more = grid(["a", "d"], [0.5], precisions=("fp", "int8"))
    assert [[cell.method for cell in group] for group in plan_groups(more, timed)] == [[None, None, "d", "d"]]
    assert find_group(timed, (UNPRUNED, more[-1])) is None
    assert plan_groups(cells[:1], []) == [(UNPRUNED,)]
    # Without INT8 first, with it later: pairs are timed anew, together.
    floats = [Group(samples={cell.name: {} for cell in cells if not cell.quantized})]
    assert {cell for group in plan_groups(cells, floats) for cell in group} == set(cells)


@pytest.mark.parametrize(
    ("work", "message"), [(study_jobs.die, "fewer than 2 --workers"), (study_jobs.refuse, "not this one")]
)
def test_workers_that_die_or_refuse_end_the_others(tmp_path: Path, work: object, message: str) -> None:
    folder = Folder(path=tmp_path)
    jobs = [Job(folder=folder, settings=SETTINGS, cell=cell) for cell in (UNPRUNED, UNPRUNED.at("int8"))]
    start = time.monotonic()
    with pytest.raises(LmmpruneError, match=message):
        run_locally(jobs, 2, lambda name: None, work)  # type: ignore[arg-type]
    assert time.monotonic() - start < 30
    assert all(not Path("/proc", file.name).exists() for file in tmp_path.iterdir())


METHOD = """
from lmmprune.passes.methods.baselines import Random


class Mine(Random):
    name = "mine"
"""


def test_variants_are_a_grid_of_values_and_positions(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(METHOD)
    given = parse_settings(["fastv.layer=2", "fastv.layer=3"])
    found = choose_variants(
        None, ["fastv", "random"], files=[file], options=given, positions=["contiguous", "original"]
    )
    assert [(one.method, one.options, one.positions) for one in found.chosen] == [
        *(("fastv", (("layer", value),), how) for value in "23" for how in ("contiguous", "original")),
        *((name, (), how) for name in ("random", "mine") for how in ("contiguous", "original")),
    ]
    cells = grid(found.chosen, [0.5], precisions=("fp", "int8"))
    assert len({cell.name for cell in cells}) == len(cells) == 2 + 2 * len(found.chosen)
    assert {"fastv-0.5-layer=2-original", "random-0.5-contiguous-int8"} <= {cell.name for cell in cells}
    # What its file says is part of a cell: an edited one is another cell, and the others stay.
    (before,) = [
        cell for cell in cells if cell.method == "mine" and not cell.quantized and cell.positions == "original"
    ]
    file.write_text(METHOD + "\n# edited\n")
    after = choose_variants(["mine"], (), files=[file], positions=["original"])
    (edited,) = grid(after.chosen, [0.5])[1:]
    assert edited.name != before.name
    assert edited.label == before.label == "mine original 50 %"
    folder = Folder(path=tmp_path / "study")
    assert edited.code is not None
    folder.keep_code(file, edited.code)
    file.write_text("")
    kept = folder.code(edited)
    assert kept is not None
    assert kept.read_text().endswith("# edited\n")
    with pytest.raises(InputError, match="was edited while"):
        folder.keep_code(file, edited.code)


def test_all_methods_are_every_one() -> None:
    assert {one.method for one in choose_variants(["all"], ()).chosen} == set(find_methods())


def test_names_of_cells_stay_apart_and_short() -> None:
    def cell(value: str, positions: str | None = None) -> Cell:
        return Cell(method="m", ratio=0.5, options=(("a", value),), positions=positions)

    assert cell("x-original").name != cell("x", "original").name
    assert "/" not in cell("../x").name
    assert cell("y" * 900).name != cell("y" * 901).name
    assert len(cell("y" * 900).name.encode()) < 220


@pytest.mark.parametrize(
    ("options", "positions", "message"),
    [
        (["layer=2"], (), "expected METHOD.option=value"),
        (["fastv.layer"], (), "expected METHOD.option=value"),
        (["fastv.layer=2", "fastv.layer=2"], (), "given twice"),
        (["tome.layer=2"], (), "'tome' isn't among the methods"),
        (["fastv.depth=2"], (), "depth"),
        (["fastv.layer=two"], (), "two"),
        ([], ["middle"], "--positions middle: expected contiguous or original"),
    ],
)
def test_bad_variants(options: list[str], positions: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_variants(["fastv"], (), options=parse_settings(options), positions=positions)


def test_schedules_are_variants_of_what_can_follow_them(tmp_path: Path) -> None:
    file = tmp_path / "steep.json"
    file.write_text('{"llm_input_1": 20}')
    found = choose_variants(["fastv", "random"], (), schedules=[file])
    assert [one.schedule and one.schedule[0] for one in found.chosen if one.method == "random"] == [None]
    cells = grid(found.chosen, [0.5, 0.75])
    (cell,) = [one for one in cells if one.schedule]
    assert cell.label == f"{cell.method} steep"
    assert len({one.name for one in cells}) == len(cells)
    with pytest.raises(InputError, match="none of random can cut at any decoder layer"):
        choose_variants(["random"], (), schedules=[file])
