"""Folders for boards: what is in them, what they take of the memory, and that the run-time in them runs."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from exports import exported_again
from runtime_fixtures import make_bundle, save_picture

from lmmprune.compiler.build.inspect_engine import GraphWeights
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.bundle.write_bundle import write_bundle
from lmmprune.compiler.deploy.activations import activation_bytes, peak_bytes
from lmmprune.compiler.deploy.deploy import deploy, requirements
from lmmprune.compiler.deploy.memory_plan import GIB, plan_memory
from lmmprune.compiler.deploy.wheel import write_wheel
from lmmprune.compiler.deploy.write_plan import write_plan
from lmmprune.compiler.targets import packages
from lmmprune.compiler.targets.boards import BOARDS, JETPACKS
from lmmprune.compiler.targets.targets import TARGETS, resolve
from lmmprune.errors import InputError, TargetError


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("deploy") / "pruned", keep=8, dtype="float16", target="tensorrt-10.3")


@pytest.fixture(scope="module")
def folder(bundle, tmp_path_factory):
    return deploy(bundle.path, "jetson-orin-jp6", tmp_path_factory.mktemp("orin") / "out").folder


def test_folder_holds_a_whole_bundle_and_the_run_time(folder, bundle):
    copy = Bundle.open(folder / "pruned")
    copy.verify_checksums()
    assert copy.manifest == bundle.manifest
    names = {path.name for path in folder.iterdir()}
    assert {"README.md", "SHA256SUMS", "measure.sh", "memory.json", "requirements.txt", "steps.tsv"} <= names
    subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    listed = {line.split("  ")[1].strip() for line in (folder / "SHA256SUMS").open()}
    assert listed == {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {"SHA256SUMS"}
    readme = (folder / "README.md").read_text()
    assert "lmmprune build pruned --target jetson-orin-jp6" in readme
    assert "Python 3.10" in readme
    assert "--memPoolSize=workspace:1024M" in (folder / "steps.tsv").read_text()


@pytest.fixture
def stated(monkeypatch):
    """The requirements of this tree, whatever the installed metadata says."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML by itself")
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"]]
    for extra, wanted in project["optional-dependencies"].items():
        pairs = [line.partition(";")[::2] for line in wanted]
        lines += [
            f'{what}; ({when.strip()}) and extra == "{extra}"' if when else f'{what}; extra == "{extra}"'
            for what, when in pairs
        ]
    monkeypatch.setattr(packages.importlib.metadata, "requires", lambda name: lines)


@pytest.mark.parametrize(
    ("board", "major", "older"), [("jetson-orin-jp6", 12, {"tomli"}), ("jetson-thor-jp7", 13, set())]
)
def test_requirements_are_the_run_times(stated, board, major, older):
    *base, cuda = requirements(JETPACKS[board])
    names = {line.split(">")[0] for line in base}
    modules = {"numpy", "pillow", "tokenizers", "safetensors", "click", "rich", "packaging", "psutil"}
    modules |= {"filelock", "cattrs"}
    modules |= {"ml-dtypes", "onnx-ir"}
    assert names - {"tomli"} == modules
    assert names - modules == older  # reads options from a file where Python can't
    assert re.fullmatch(rf"cuda-(python|bindings)>={major}\.\d+,<{major + 1}", cuda)


def test_weights_shared_with_a_checkpoint_go_along(bundle, tmp_path):
    with write_bundle(tmp_path / "shared") as writer:
        (writer.path / "weights").mkdir()
        for name in ("vision.onnx", "tokenizer.json", "preprocessor.json"):
            shutil.copy(bundle.path / name, writer.path)
        onnx.save(
            onnx.load(bundle.decoder),
            writer.path / "decoder.onnx",
            save_as_external_data=True,
            location="weights/model.safetensors",
            size_threshold=0,
        )
        os.link(writer.path / "weights" / "model.safetensors", tmp_path / "checkpoint")
        writer.finish(bundle.manifest)
    made = deploy(tmp_path / "shared", "jetson-orin-jp6", tmp_path / "out")
    assert Bundle.open(made.folder / "shared").decoder.is_file()
    assert (made.folder / "shared" / "weights" / "model.safetensors").stat().st_nlink == 1
    plan = write_plan([tmp_path / "shared"], "tensorrt-10.3", tmp_path / "plan")
    assert (plan.folder / "shared" / "weights" / "model.safetensors").is_file()


def test_every_board_has_its_jetpack():
    assert {alias for target in TARGETS.values() for alias in target.boards} == set(JETPACKS)
    for alias, software in JETPACKS.items():
        assert f"CUDA {software.cuda}" in resolve(alias).summary
        assert f"JetPack {software.release}" in resolve(alias).summary
        assert f"Python {software.python}" in resolve(alias).summary


def test_wheel_runs_without_the_source_tree(tmp_path, monkeypatch):
    wheel = write_wheel(tmp_path)
    assert write_wheel(tmp_path).read_bytes() == wheel.read_bytes()
    target = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel]
    subprocess.run([*command, "--disable-pip-version-check"], check=True, capture_output=True)
    bundle = make_bundle(tmp_path / "b", keep=8)
    picture = save_picture(tmp_path / "p.png", 3)
    code = "import sys, lmmprune; from lmmprune.compiler.cli import main; print(lmmprune.__file__); main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, "run", bundle.path, "--image", picture, "--prompt", "hi", "--json"],
        env={**os.environ, "PYTHONPATH": str(target)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[0] == str(target / "lmmprune" / "__init__.py")
    assert json.loads(done.stdout.split("\n", 1)[1])["answer"]
    assert (target / "lmmprune" / "compiler" / "deploy" / "measure.sh").is_file()
    assert not (target / "lmmprune" / "models" / "tiny_llava").exists()


def test_cache_is_counted_by_hand(tmp_path):
    bundle = make_bundle(tmp_path / "b", keep=8, dtype="float16", target="tensorrt-10.3", max_positions=2**14)
    plan = plan_memory(bundle, resolve("tensorrt-10.3"), max_prompt=2**14 - 500, workspace=5, system=7)
    parts = {part.name: part.bytes for part in plan.parts}
    # The model's positions end the answer before its 512 tokens do.
    assert plan.length == 2**14
    assert plan_memory(bundle, resolve("tensorrt-10.3"), max_prompt=20).length == 532
    # Past and present x 2 layers x keys and values x 2 heads x 4 numbers x 2 bytes each; 2**20 leaves no room to grow.
    assert parts["key/value cache"] == 2 * 2 * 2 * 2 * 4 * 2 * 2**14
    sizes = (bundle.path / name for name in ("vision.onnx", "decoder.onnx", "decoder.data"))
    assert parts["weights"] == sum(path.stat().st_size for path in sizes)
    assert (parts["workspace"], parts["system"]) == (5, 7)
    assert plan.total == sum(parts.values())
    with pytest.raises(InputError, match="--max-prompt 8 must be more than the image's 8 tokens and at most 16384"):
        plan_memory(bundle, resolve("tensorrt-10.3"), max_prompt=8)


def test_caches_behind_cuts_are_shorter(tmp_path):
    limits = {"dtype": "float16", "target": "tensorrt-10.3", "max_positions": 2**14}
    whole = make_bundle(tmp_path / "whole", **limits)
    cut = dataclasses.replace(whole.manifest.cache, length_offsets=(0, -(2**13)))
    behind = make_bundle(tmp_path / "cut", **limits, cache=cut)
    caches = [plan_memory(b, resolve("tensorrt-10.3")).parts[1].bytes for b in (whole, behind)]
    assert caches[1] / caches[0] == 3 / 4


def test_values_that_live_at_once():
    """Counted by hand: b and c live together (1200 + 400), then c and d (400 + 800), and e is an output."""
    text = """
    <ir_version: 10, opset_import: ["" : 23]>
    g (float[100] x) => (float[200] e) <int64[1] shape = {-1}, int64[1] zero = {0}, int64[1] end = {100}>
    { a = Concat <axis = 0> (x, x, x)
      b = Reshape (a, shape)
      c = Slice (b, zero, end)
      d = Concat <axis = 0> (c, c)
      e = Neg (d) }
    """
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text), data_prop=True))
    assert peak_bytes(model) == 1200 + 400


def test_longer_prompts_take_more(bundle):
    few, many = (activation_bytes(bundle.decoder, seq=seq, image_tokens=8) for seq in (20, 40))
    assert few < many < 3 * few


def test_lowered_attention_counts_its_logits():
    path, _ = exported_again(target="tensorrt-10.3", ratio=0.5)
    small, large = (activation_bytes(path / "decoder.onnx", seq=seq, image_tokens=72) for seq in (128, 256))
    assert large > 2.5 * small, "the matrix of queries and keys grows with the square"


def test_board_that_is_too_small(bundle, tmp_path, cli):
    need = plan_memory(bundle, resolve("tensorrt-10.3")).total
    code, _, err = cli("deploy", bundle.path, "--for", "jetson-orin-jp6", "-o", tmp_path / "o", "--ram", "2GiB")
    assert code == 2
    assert f"'pruned' takes {need / GIB:.2f} GiB (weights 0.00, key/value cache 0.00, " in err
    assert "the board has 2.00: --workspace 256MiB takes 1.75 GiB; a board with 4 GiB" in err
    assert not (tmp_path / "o").exists()
    code, _, err = cli("deploy", bundle.path, "--for", "jetson-orin-jp6", "-o", tmp_path / "o", "--ram", "1GiB")
    assert code == 2
    assert "--workspace" not in err


def test_shorter_prompts_and_int8_are_named_where_they_help(monkeypatch, bundle, tmp_path):
    """A bundle of 12 GiB of weights whose values between the layers take 1 MiB a token."""
    import lmmprune.compiler.deploy.memory_plan as module

    monkeypatch.setattr(module, "activation_bytes", lambda graph, seq=0, **_: seq * 2**25)
    monkeypatch.setattr(Bundle, "bytes", property(lambda self: 12 * 2**30))
    with pytest.raises(TargetError) as e:
        deploy(bundle.path, "jetson-orin-jp6", tmp_path / "o", ram=17 * 2**30)
    assert (
        "--max-prompt 64 takes 16.50 GiB; exporting with --int8 leaves 6.00 GiB of weights or little more; exporting"
        " with --int4 leaves 3.00 GiB of weights"
    ) in str(e.value)
    assert "a board with 32 GiB" in str(e.value)


def test_command_line(bundle, tmp_path, cli):
    code, out, _ = cli("deploy", bundle.path, "--for", "jetson-orin-jp6", "-o", tmp_path / "a", "--ram", "8GB")
    assert code == 0
    assert "of 8.0 GiB: 5.5 GiB stay free" in out
    assert "fits: Orin Nano 4GB, " in out
    code, out, _ = cli("deploy", bundle.path, "--for", "jetson-orin-jp6", "-o", tmp_path / "b", "--json")
    assert code == 0
    printed = json.loads(out)
    assert [row["name"] for row in printed["boards"]] == [board.name for board in BOARDS if board.arch == "sm87"]
    assert printed["memory"]["total"] == sum(part["bytes"] for part in printed["memory"]["parts"])


def test_building_takes_more_than_running(bundle, tmp_path, cli, monkeypatch):
    """Weights are counted by what the graphs hold: 3 GiB in the decoder, of which three copies don't go into 8 GB."""
    import lmmprune.compiler.build.memory as module

    counted = {"vision.onnx": 2**30, "decoder.onnx": 3 * 2**30}
    found = {name: GraphWeights(bytes={"FLOAT16": size}, float16_bytes=size) for name, size in counted.items()}
    monkeypatch.setattr(module, "graph_weights", lambda path: found[path.name])
    arguments = ("deploy", bundle.path, "--for", "jetson-orin-jp6")
    code, out, err = cli(*arguments, "-o", tmp_path / "small", "--ram", "8GiB")
    assert code == 0, "no refusal"
    need = "uilding takes about 9.2 GiB of the board's memory (three times the largest graph's weights)"
    warning = f"{need}, the board has 6.5 GiB beside its system: add swap, or export with --int8"
    assert f"warning: b{warning}" in err
    assert "building takes 9.2 GiB before that" in out
    assert f"B{warning}." in (tmp_path / "small" / "README.md").read_text()
    # 9.25 for the builder and 1.5 for the system.
    code, out, err = cli(*arguments, "-o", tmp_path / "large", "--ram", "10.75GiB", "--json")
    assert code == 0
    assert "warning" not in err
    assert json.loads(out)["building"] == {"bytes": 9 * 2**30 + 2**28, "warning": None}
    assert f"B{need}." in (tmp_path / "large" / "README.md").read_text()


@pytest.mark.parametrize(
    ("board", "message"),
    [
        ("jetson-orin-jp5", "no board 'jetson-orin-jp5'; did you mean 'jetson-orin-jp"),
        ("tensorrt-10.3", "no board 'tensorrt-10.3'; known: jetson-orin-jp6"),
    ],
)
def test_names_that_are_no_board(bundle, tmp_path, cli, board, message):
    code, _, err = cli("deploy", bundle.path, "--for", board, "-o", tmp_path / "o")
    assert code == 2
    assert message in err
    assert not (tmp_path / "o").exists()


def test_bundle_of_another_targets_operators(tmp_path, cli):
    later = make_bundle(tmp_path / "later", dtype="float16", target="tensorrt-10.16", opset=23)
    code, _, err = cli("deploy", later.path, "--for", "jetson-orin-jp6", "-o", tmp_path / "o")
    assert code == 2
    assert "its opset is 23, the target reads up to 21" in err
    code, _, _ = cli("deploy", later.path, "--for", "jetson-thor-jp7", "-o", tmp_path / "o")
    assert code == 0
