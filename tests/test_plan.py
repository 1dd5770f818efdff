"""Plans: the folder, its script under a stand-in for trtexec, and the way back into ``bench``."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from exports import exported_again
from runtime_fixtures import make_bundle
from shell import assert_clean

from lmmprune.compiler.build import trtexec
from lmmprune.compiler.build.options import BuildOptions
from lmmprune.compiler.deploy.write_plan import POWER, SCRIPT, write_plan
from lmmprune.compiler.measure.read_result import import_result
from lmmprune.compiler.targets.targets import TARGETS
from lmmprune.errors import InputError, TargetError

SCRIPT_FILE = Path(__file__).parent.parent / "compiler" / "deploy" / SCRIPT
BOARDS = [(alias, target.name) for target in TARGETS.values() for alias in target.boards]
BANNERS = {"tensorrt-10.3": "100300", "tensorrt-10.13": "101303", "tensorrt-10.16": "101602", "tensorrt-11": "110401"}


def bundles(folder, target):
    full = make_bundle(folder / "baseline", dtype="float16", target=target)
    pruned = make_bundle(folder / "pruned", keep=8, dtype="float16", target=target)
    return [full.path, pruned.path]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Both bundles for TensorRT 10.3 and their plan."""
    folder = tmp_path_factory.mktemp("plan")
    paths = bundles(folder, "tensorrt-10.3")
    return write_plan(paths, "jetson-orin-jp6", folder / "plan")


@pytest.fixture
def plan(made, tmp_path):
    """The plan's folder, a copy that may be spoilt."""
    shutil.copytree(made.folder, tmp_path / "plan")
    return tmp_path / "plan"


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """A folder for PATH that holds the stand-in as ``trtexec``."""
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "trtexec"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {Path(__file__).parent / "fake_trtexec.py"} "$@"\n')
    script.chmod(0o755)
    return folder


def measure(plan, program, *arguments, **environment):
    """Run the script as on a board: no Python path, nothing of lmmprune."""
    path = os.pathsep.join(filter(None, [program and str(program), "/usr/bin", "/bin"]))
    done = subprocess.run(
        ["sh", str(plan / SCRIPT), "-r", "2", "-s", "0", *arguments],
        env={"PATH": path, **environment},
        capture_output=True,
        text=True,
        cwd=plan.parent,
        check=False,
        timeout=900,  # one that hangs, however slow the machine is
    )
    return done, plan.parent / "result.json"


def test_script_is_clean():
    assert_clean(SCRIPT_FILE)


def test_folder_stands_alone(made):
    names = {path.relative_to(made.folder).as_posix() for path in made.folder.rglob("*") if path.is_file()}
    graphs = {
        f"{name}/{file}" for name in ("baseline", "pruned") for file in ("vision.onnx", "decoder.onnx", "decoder.data")
    }
    inputs = {
        f"{name}/inputs/{stage}.{tensor}.bin"
        for name in ("baseline", "pruned")
        for stage in ("prefill", "decode")
        for tensor in ("input_ids", "position_ids")
    }
    assert names == graphs | inputs | {SCRIPT, POWER, "steps.tsv", "plan.json", "README.md", "SHA256SUMS"}
    assert (made.folder / SCRIPT).stat().st_mode & stat.S_IXUSR
    subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=made.folder, check=True)
    listed = {line.split("  ")[1] for line in (made.folder / "SHA256SUMS").read_text().splitlines()}
    assert listed == names - {"SHA256SUMS"}


def test_timing_cache_where_the_builder_has_none(tmp_path):
    options = BuildOptions(timing_cache=Path("x.cache"))
    with pytest.raises(TargetError, match="'tensorrt-rtx' has no timing cache: leave out --timing-cache"):
        write_plan(bundles(tmp_path, "tensorrt-rtx"), "tensorrt-rtx", tmp_path / "plan", options=options)
    options = BuildOptions(refit=True)  # refused here without a GPU; the plan runs where there is one
    write_plan(bundles(tmp_path, "tensorrt-rtx"), "tensorrt-rtx", tmp_path / "plan", options=options)
    assert "--refit" in (tmp_path / "plan" / "steps.tsv").read_text()


def test_engines_without_weights_are_not_timed(tmp_path):
    with pytest.raises(InputError, match="--strip-weights with --plan-only: a plan times what it builds"):
        write_plan(
            bundles(tmp_path, "tensorrt-11"), "tensorrt-11", tmp_path / "plan", options=BuildOptions(strip_weights=True)
        )


@pytest.mark.parametrize("path", ["/home/me/x.cache", "~/x.cache", "../x.cache"])
def test_timing_cache_outside_of_the_folder(tmp_path, path):
    options = BuildOptions(timing_cache=Path(path))
    with pytest.raises(InputError, match=r"is a place on this machine.* leave it out .*'engines/timing.cache'"):
        write_plan(bundles(tmp_path, "tensorrt-11"), "tensorrt-11", tmp_path / "plan", options=options)
    assert not (tmp_path / "plan").exists()


def test_timing_cache_inside_of_the_folder(tmp_path):
    options = BuildOptions(timing_cache=Path("mine.cache"))
    made = write_plan(bundles(tmp_path, "tensorrt-11"), "tensorrt-11", tmp_path / "plan", options=options)
    builds = [command for command in made.commands if "--onnx=" in command]
    assert all("--timingCacheFile=mine.cache" in command for command in builds)
    # Shapes of both profiles.
    decoder = next(command for command in builds if "decoder.onnx" in command)
    assert "--profile=0 --minShapes=input_ids:1x1,position_ids:1x1,past_key_0:1x2x0x4" in decoder
    assert "--profile=1" in decoder


def test_everything_is_built_timed_and_imported(plan, program):
    done, result = measure(plan, program)
    assert done.returncode == 0, done.stderr
    found = import_result(result)
    assert found.missing == ()
    baseline, pruned = found.report.rows
    assert (baseline.name, pruned.name) == ("baseline", "pruned")
    # The stand-in's medians of the GPU's compute time, not of the latency.
    assert {metric: spread.median for metric, spread in baseline.times.items()} == {
        "vision_ms": 20, "prefill_ms": 100, "ttft_ms": 120, "ms_per_token": 10,
    }  # fmt: skip
    assert {spread.median for spread in pruned.speedup.values()} == {2.0}
    assert (pruned.tokens_before, pruned.image_tokens, pruned.dtype) == (16, 8, "float16")
    assert found.report.machine["processor"] == "Orin"
    assert found.report.machine["engine"] == "TensorRT 10.3.0"
    raw = json.loads(result.read_text())
    assert raw["status"] == "complete"
    assert [run["round"] for run in raw["runs"] if run["kind"] == "time"] == [1] * 6 + [2] * 6
    assert {run["bytes"] for run in raw["runs"] if run["kind"] == "build"} == {26}


@pytest.mark.parametrize(("alias", "name"), [*BOARDS, ("tensorrt-11", "tensorrt-11")])
def test_plan_of_every_board_speaks_its_programs_dialect(tmp_path, program, alias, name):
    written = write_plan(bundles(tmp_path, name), alias, tmp_path / "plan", options=BuildOptions(workspace=2**30))
    assert written.arch == TARGETS[name].boards.get(alias)
    builds = [command for command in written.commands if "--onnx=" in command]
    assert len(builds) == 4
    for command in builds:
        assert ("--stronglyTyped" in command) == name.startswith("tensorrt-10")
        assert "--memPoolSize=workspace:1024M" in command
    done, result = measure(tmp_path / "plan", program, FAKE_VERSION=BANNERS[name])
    assert done.returncode == 0, done.stderr
    assert len(import_result(result).report.rows) == 2


def test_program_that_is_missing(plan):
    done, result = measure(plan, None)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines() == [
        "measure.sh: trtexec was not found on PATH nor in /usr/src/tensorrt/bin: install TensorRT's tools "
        "(JetPack: apt install tensorrt), or set TRTEXEC"
    ]
    assert json.loads(result.read_text())["status"] == "refused"
    with pytest.raises(InputError, match="no variant that was timed in full: trtexec was not found"):
        import_result(result)


@pytest.mark.parametrize(("banner", "says"), [("101302", "10.13.2"), ("8601", "8.6.1"), ("100200", "10.2.0")])
def test_wrong_version(plan, program, banner, says):
    done, result = measure(plan, program, FAKE_VERSION=banner)
    assert done.returncode == 1
    assert f"for TensorRT 10.3 up to (not including) 10.13, '{program}/trtexec' is {says}: " in done.stderr
    raw = json.loads(result.read_text())
    assert (raw["status"], raw["version"], raw["runs"]) == ("refused", says, [])


def test_program_of_another_name(plan, program):
    done, _ = measure(plan, None, TRTEXEC="/bin/true")
    assert done.returncode == 1
    assert "'/bin/true --help' doesn't say which TensorRT it belongs to" in done.stderr
    done, _ = measure(plan, program, TRTEXEC="/no/such/trtexec")
    assert (done.returncode, done.stderr.strip()) == (2, "measure.sh: TRTEXEC=/no/such/trtexec isn't a program")
    (plan.parent / "mine").symlink_to(program / "trtexec")
    done, _ = measure(plan, None, TRTEXEC="./mine")
    assert done.returncode == 0, done.stderr


def test_changed_file(plan, program):
    path = plan / "pruned" / "decoder.data"
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.unlink()
    path.write_bytes(data)
    done, result = measure(plan, program)
    assert done.returncode == 1
    assert done.stderr.startswith("measure.sh: the checksum of 'pruned/decoder.data' differs from what was exported")
    assert json.loads(result.read_text())["status"] == "refused"


def test_failed_build_leaves_the_truth_about_the_others(plan, program):
    done, result = measure(plan, program, FAKE_FAIL="--onnx=pruned/decoder.onnx")
    assert done.returncode == 1
    assert 'measure.sh: pruned: building decoder failed: Error[2]: no "kernel" for node a\\b (see logs/' in done.stderr
    raw = json.loads(result.read_text())
    assert raw["status"] == "partial"
    assert sum(run["kind"] == "time" for run in raw["runs"]) == 2 * (3 + 1)
    found = import_result(result)
    assert [row.name for row in found.report.rows] == ["baseline"]
    assert found.missing == ('pruned: building decoder failed: Error[2]: no "kernel" for node a\\b',)


def test_failed_measurement(plan, program):
    done, result = measure(plan, program, FAKE_FAIL="--loadEngine=engines/baseline/vision.engine")
    assert done.returncode == 1
    assert "baseline: timing vision failed" in done.stderr
    assert [row.name for row in import_result(result).report.rows] == ["pruned"]
    done, result = measure(plan, program, FAKE_SILENT="1")
    assert done.returncode == 1
    with pytest.raises(InputError, match=r"no variant that was timed in full: .*baseline: timing vision failed"):
        import_result(result)


def test_attention_without_a_kernel_is_taken_apart(tmp_path, program):
    write_plan(bundles(tmp_path, "tensorrt-10.16"), "tensorrt-10.16", tmp_path / "plan")
    done, result = measure(tmp_path / "plan", program, FAKE_VERSION="101602", FAKE_UNFUSED="pruned/decoder")
    assert done.returncode == 0, done.stderr
    builds = [run for run in json.loads(result.read_text())["runs"] if run["kind"] == "build"]
    assert [run["fused_attention"] for run in builds] == [True, True, True, False]


def test_several_token_counts_and_rtx(tmp_path, program):
    """The graph of a bucket behind the encoder is timed as a stage of its own and belongs to the picture's time."""
    path, report = exported_again(target="tensorrt-rtx", method="inflection", buckets=(0.5, 0.75))
    plan = write_plan([path], "rtx", tmp_path / "plan")
    assert [stage.name for stage in plan.variants[0].stages] == ["vision", "bucket", "prefill", "decode"]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tensorrt_rtx").symlink_to(program / "trtexec")
    done, result = measure(tmp_path / "plan", tmp_path / "bin", FAKE_VERSION="10701")
    assert done.returncode == 0, done.stderr
    (row,) = import_result(result).report.rows
    assert (row.times["vision_ms"].median, row.times["ttft_ms"].median) == (21, 121)
    assert row.tokens_before == report.manifest.tokens_before


@pytest.mark.parametrize(("alias", "name"), BOARDS)
def test_real_exports_for_every_jetson(tmp_path, program, alias, name):
    """Unpruned, and INT8 cut inside the decoder: the script takes what the exporter writes."""
    calibrated = {"int8": True, "calibration_samples": 2}
    paths = [exported_again(target=name, **more)[0] for more in ({}, {"ratio": 0.5, "method": "fastv", **calibrated})]
    for path, called in zip(paths, ("baseline", "pruned"), strict=True):
        (tmp_path / called).symlink_to(path)
    written = write_plan([tmp_path / "baseline", tmp_path / "pruned"], alias, tmp_path / "plan")
    assert written.arch == TARGETS[name].boards[alias]
    done, result = measure(tmp_path / "plan", program, FAKE_VERSION=BANNERS[name])
    assert done.returncode == 0, done.stderr
    baseline, pruned = import_result(result).report.rows
    # Two of four layers see everything, one token goes on.
    assert (baseline.image_tokens, pruned.image_tokens) == (144, 72.5)


def test_interrupted_script_says_so(plan, program):
    process = subprocess.Popen(
        ["sh", str(plan / SCRIPT), "-r", "2", "-o", str(plan.parent / "result.json")],
        env={"PATH": f"{program}:/usr/bin:/bin", "FAKE_SLEEP": "--loadEngine"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (plan / "sleeping").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 1
    assert "measure.sh: interrupted" in error
    raw = json.loads((plan.parent / "result.json").read_text())
    assert raw["status"] == "interrupted"
    assert {run["kind"] for run in raw["runs"] if run["ok"]} == {"build"}
    with pytest.raises(InputError, match="no variant that was timed in full: interrupted"):
        import_result(plan.parent / "result.json")


def test_only_rounds_that_all_variants_have_are_compared(plan, program):
    _, result = measure(plan, program, "-r", "4")
    raw = json.loads(result.read_text())
    raw["status"], raw["problem"] = "interrupted", "interrupted"
    last = [run for run in raw["runs"] if run.get("round") == 4 and run["variant"] == "pruned"]
    raw["runs"] = [run for run in raw["runs"] if run not in last]
    for run in raw["runs"]:
        if run["kind"] == "time":
            run["gpu_ms"] *= run["round"]
    result.write_text(json.dumps(raw))
    found = import_result(result)
    assert found.missing == ("measure.sh was interrupted",)
    assert found.report.settings["rounds"] == 3
    assert found.report.rows[0].samples["prefill_ms"] == (100, 200, 300)
    assert found.report.rows[1].speedup["ttft_ms"].median == 2.0


def test_options_of_the_script(plan, program, tmp_path):
    done, _ = measure(plan, program, "-r", "1")
    assert (done.returncode, done.stderr.strip()) == (2, "measure.sh: -r 1: a spread needs 2 rounds or more")
    done, _ = measure(plan, program, "-s", "1.5")
    assert done.returncode == 2
    done, _ = measure(plan, program, "-o", str(tmp_path / "other.json"))
    assert done.returncode == 0
    assert len(import_result(tmp_path / "other.json").report.rows) == 2


def test_command_line_there_and_back(made, plan, program, tmp_path, cli):
    paths = [variant.bundle.path for variant in made.variants]
    code, out, _ = cli("build", *paths, "--target", "jetson-orin-jp6", "--plan-only", "-o", tmp_path / "new", "--json")
    assert code == 0
    printed = json.loads(out)
    assert (printed["target"], printed["arch"], printed["variants"]) == (
        "tensorrt-10.3",
        "sm87",
        ["baseline", "pruned"],
    )
    assert printed["commands"] == json.loads((tmp_path / "new" / "plan.json").read_text())["commands"]
    _, result = measure(tmp_path / "new", program)
    code, out, _ = cli("bench", "--import", result, "--chart", tmp_path / "x.png")
    assert code == 0
    assert "2.00x" in out
    assert "2 interleaved rounds on Orin, TensorRT 10.3.0" in out
    assert (tmp_path / "x.png").stat().st_size > 5000
    code, out, _ = cli("bench", "--import", result, "--json")
    assert code == 0
    assert json.loads(out)["rows"][1]["speedup"]["ttft_ms"]["median"] == 2.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plan-only"], "--plan-only needs a folder: -o FOLDER"),
        (["-o", "x"], "-o goes with --plan-only"),
        (["--plan-only", "-o", "x", "--arch", "sm87"], "--arch doesn't go with --plan-only"),
        (["--workspace", "lots"], "'lots' isn't a size: write 8GiB"),
    ],
)
def test_options_that_do_not_fit(made, cli, arguments, message):
    code, _, err = cli("build", made.variants[0].bundle.path, *arguments)
    assert code == 2
    assert message in err


def test_folder_that_is_not_empty(made, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    path = made.variants[0].bundle.path
    with pytest.raises(InputError, match="isn't empty and isn't a plan: give another directory"):
        write_plan([path], "tensorrt-10.3", tmp_path / "full")
    assert [entry.name for entry in (tmp_path / "full").iterdir()] == ["mine"]
    with pytest.raises(InputError, match="would both be called 'baseline'"):
        write_plan([path, path], "tensorrt-10.3", tmp_path / "new")
    with pytest.raises(TargetError, match="needs no build"):
        write_plan([path], "ort-cpu", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_banner():
    assert [trtexec.banner(text) for text in ("10.3", "10.16", "11.0")] == [100300, 101600, 110000]
