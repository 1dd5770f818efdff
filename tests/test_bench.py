from __future__ import annotations

import json
from pathlib import Path

import pytest
import runtime_fixtures as fx

from lmmprune.compiler.bundle.manifest import Precision
from lmmprune.compiler.cli import main
from lmmprune.compiler.measure.bench import bench, steps
from lmmprune.compiler.measure.chart import check_chart, draw_chart
from lmmprune.compiler.measure.memory import measure_memory
from lmmprune.compiler.measure.report import METRICS, Row, Spread, find_products, paired_speedup
from lmmprune.compiler.measure.statistics import Estimate
from lmmprune.errors import BundleError, InputError

INT8 = Precision(dtype="float32", int8="u8s8", calibration={})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    fx.make_bundle(folder / "base")
    fx.make_bundle(folder / "pruned", keep=4)
    fx.make_bundle(folder / "int8", precision=INT8)
    fx.make_bundle(folder / "both", keep=4, precision=INT8)
    fx.save_picture(folder / "p.png", 1, 2)
    return folder


def row(name: str, ms: float, *, tokens: int = 16, int8: str | None = None, method: str | None = None) -> Row:
    samples = dict.fromkeys(METRICS, (ms, ms * 1.1, ms * 0.9))
    return Row(
        name=name,
        path=name,
        model="m",
        method=method,
        tokens_before=16,
        image_tokens=tokens,
        dtype="float32",
        int8=int8,
        target="ort-cpu",
        weights_bytes=1,
        memory=None,
        samples=samples,
        times={metric: Spread.of(values) for metric, values in samples.items()},
        speedup={metric: Spread(median=1, q1=1, q3=1) for metric in METRICS},
        intervals={metric: Estimate(value=1, low=1, high=1) for metric in METRICS},
    )


def test_spread() -> None:
    assert Spread.of([1, 2, 3, 4, 100]) == Spread(median=3, q1=2, q3=4)


def test_speedup_is_taken_within_rounds() -> None:
    # The machine became three times slower in the second round: the ratio doesn't notice.
    assert paired_speedup([2, 6, 2], [1, 3, 1]) == Spread(median=2, q1=2, q3=2)


def test_products_are_found_in_any_order() -> None:
    rows = [
        row("both", 2, tokens=4, int8="u8s8", method="cls"),
        row("int8", 4, int8="u8s8"),
        row("other", 3, tokens=4, method="random"),
        row("base", 12),
        row("pruned", 6, tokens=4, method="cls"),
    ]
    product = find_products(rows)[0]
    assert (product.metric, product.baseline, product.both) == ("ttft_ms", "base", "both")
    assert product.pruning == pytest.approx(2)
    assert product.int8 == pytest.approx(3)
    assert product.expected == pytest.approx(6)
    assert product.measured == pytest.approx(6)
    assert "2.00x x 3.00x = 6.00x, 6.00x" in product.line()


@pytest.mark.parametrize("missing", ["both", "int8", "base", "pruned"])
def test_no_product_without_all_four(missing: str) -> None:
    rows = [
        row("base", 12),
        row("pruned", 6, tokens=4, method="cls"),
        row("int8", 4, int8="u8s8"),
        row("both", 2, tokens=4, int8="u8s8", method="cls"),
    ]
    assert find_products(rows)
    assert find_products([one for one in rows if one.name != missing]) == ()
    other = row("pruned", 6, tokens=5, method="cls")
    assert find_products([other if one.name == "pruned" else one for one in rows]) == ()


def test_bench_interleaves_all_variants(folder: Path, tmp_path: Path) -> None:
    seen: list[str] = []
    paths = [folder / name for name in ("base", "pruned", "int8", "both")]
    report = bench(paths, folder / "p.png", "hi", rounds=3, new_tokens=4, threads=1, on_step=seen.append)
    assert len(seen) == steps(4, 3)
    rounds = [what for what in seen if what.startswith("round")]
    for number in range(3):
        assert sorted(rounds[4 * number : 4 * number + 4]) == sorted(
            f"round {number + 1}: {name}" for name in ("base", "pruned", "int8", "both")
        )
    assert [one.name for one in report.rows] == ["base", "pruned", "int8", "both"]
    for one in report.rows:
        assert {len(values) for values in one.samples.values()} == {3}
        assert all(value > 0 for values in one.samples.values() for value in values)
        assert one.weights_bytes > 15_000
        assert one.memory is not None
        assert 20 * 2**20 < one.memory.base <= one.memory.peak < 2**30
    assert report.rows[0].speedup["ttft_ms"] == Spread(median=1, q1=1, q3=1)
    assert [product.metric for product in report.products] == ["ttft_ms", "vision_ms"]
    json.dumps(report.as_dict(), allow_nan=False)
    draw_chart(report, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_same_names_become_paths(folder: Path, tmp_path: Path) -> None:
    fx.make_bundle(tmp_path / "base")
    report = bench([folder / "base", tmp_path / "base"], folder / "p.png", "hi", rounds=2, new_tokens=2, memory=False)
    assert [one.name for one in report.rows] == [str(folder / "base"), str(tmp_path / "base")]
    assert report.rows[0].memory is None


def test_bad_input(folder: Path) -> None:
    with pytest.raises(InputError, match="twice"):
        bench([folder / "base", folder / "base"], folder / "p.png", "hi")
    with pytest.raises(InputError, match="no picture"):
        bench([folder / "base"], folder / "q.png", "hi")
    with pytest.raises(InputError, match="too long"):
        bench([folder / "base"], folder / "p.png", "x" * 200)
    with pytest.raises(BundleError, match="doesn't exist"):
        bench([folder / "base", folder / "none"], folder / "p.png", "hi")


def test_chart_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no directory"):
        check_chart(tmp_path / "nowhere" / "x.png")
    with pytest.raises(InputError, match="suffix"):
        check_chart(tmp_path / "x.xyz")


def test_memory_failure_is_one_line(folder: Path) -> None:
    with pytest.raises(BundleError, match="measuring the memory") as caught:
        measure_memory(folder / "none", folder / "p.png", "hi")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"format": 2}', '{"format": 1, "plan": {}, "runs": []}', '{"format": 1, "runs": 3}']
)
def test_import_of_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    for arguments in (["--import", str(path)], ["--import", str(path), "--image", "x.png"], []):
        with pytest.raises(SystemExit) as stop:
            main(["bench", *arguments])
        assert stop.value.code == 2
        if len(arguments) == 2:
            assert "result.json" in capsys.readouterr().err
