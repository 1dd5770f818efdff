import json
import os
import subprocess
from pathlib import Path

import pytest

from lmmprune.compiler.backends import load_tensorrt
from lmmprune.compiler.cli import main
from lmmprune.compiler.inspect import doctor
from lmmprune.compiler.targets import machine, packages
from lmmprune.compiler.targets.machine import Gpu
from lmmprune.compiler.targets.targets import TARGETS
from lmmprune.errors import MissingExtraError

ADA = Gpu(name="NVIDIA L4", arch="sm89", driver="580.65.06", memory=23034 * 2**20)


def verdict(name):
    return next(row for row in doctor.diagnose().verdicts if row.target == name)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(machine, "gpus", tuple)


@pytest.fixture
def versions(monkeypatch):
    """Let a test say what is installed."""
    installed = {}
    monkeypatch.setattr(packages, "version", installed.get)
    return installed


def answer(monkeypatch, text):
    def run(command, **_):
        assert command[0] == "nvidia-smi"
        return subprocess.CompletedProcess(command, 0, stdout=text)

    monkeypatch.setattr(subprocess, "run", run)


@pytest.fixture(autouse=True)
def asked_anew():
    """What the driver said is kept for the whole process."""
    machine.ask_driver.cache_clear()
    yield
    machine.ask_driver.cache_clear()


def test_command_prints_and_succeeds(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "--json"])
    assert stop.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["target"] for row in found["verdicts"]] == list(TARGETS)
    assert found["machine"]["cores"] >= 1
    assert {row["name"] for row in found["packages"]["base"]} >= {"numpy", "pillow", "tokenizers"}
    with pytest.raises(SystemExit) as stop:
        main(["doctor"])
    assert stop.value.code == 0
    assert "tensorrt-rtx" in capsys.readouterr().out


def test_gpu_from_nvidia_smi(monkeypatch):
    answer(monkeypatch, "NVIDIA L4, 8.9, 580.65.06, 23034\nNVIDIA GeForce RTX 5090, 12.0, 580.65.06, 32607\n")
    assert machine.gpus()[0] == ADA
    assert machine.gpus()[1].arch == "sm120"


def test_the_driver_is_asked_once(monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho asked >> {tmp_path}/asked\necho 'NVIDIA L4, 8.9, 580.65.06, 23034'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert machine.gpus() == machine.gpus() == machine.detect_machine().gpus == (ADA,)
    doctor.diagnose()
    assert (tmp_path / "asked").read_text().split() == ["asked"]


def test_no_driver_is_looked_for_once(monkeypatch):
    tried = []

    def absent(*_, **__):
        tried.append(1)
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(subprocess, "run", absent)
    machine.gpus(), machine.gpus()
    assert len(tried) == 1


def test_gpu_of_a_jetson_that_hides_its_numbers(monkeypatch):
    answer(monkeypatch, "Orin (nvgpu), [N/A], 540.4.0, [N/A]\n")
    assert machine.gpus() == (Gpu(name="Orin (nvgpu)", arch="sm87", driver="540.4.0", memory=None),)


def test_no_driver_is_no_gpu(monkeypatch):
    def absent(*_, **__):
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(subprocess, "run", absent)
    assert machine.gpus() == ()


def test_missing_extra_names_its_command(monkeypatch, versions):
    versions.update({"torch": "2.1.0+cpu", "onnx": "1.19"})
    found = doctor.diagnose()
    assert doctor.missing(found.packages, "export")[0] == "torch 2.1.0+cpu (>=2.9,<3)"
    assert "onnx 1.19" not in " ".join(doctor.missing(found.packages, "export"))
    assert verdict("ort-cpu").export.fix == "pip install 'lmmprune[export]'"
    assert any("the run-time itself lacks numpy" in line for line in found.warnings)


def test_both_onnxruntimes_are_a_warning(monkeypatch, versions, no_gpu):
    versions.update({"onnxruntime": "1.31.0", "onnxruntime-gpu": "1.31.0"})
    (line,) = [line for line in doctor.diagnose().warnings if "overwrite each other" in line]
    assert line.endswith("pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime")
    monkeypatch.setattr(machine, "gpus", lambda: (ADA,))
    assert any(line.endswith("pip install onnxruntime-gpu") for line in doctor.diagnose().warnings)


def test_onnxruntime_gpu_serves_who_asks_for_onnxruntime(versions):
    versions["onnxruntime-gpu"] = "1.31.0"
    assert all(package.suits for package in packages.packages()["cpu"])
    assert packages.twins() == ()


def test_rtx_builds_without_a_gpu(no_gpu):
    pytest.importorskip("tensorrt_rtx")
    assert verdict("tensorrt-rtx").build.can
    assert "sm89" in verdict("tensorrt-rtx").build.why


def test_tensorrt_needs_its_package_and_a_gpu(monkeypatch, no_gpu):
    def missing(module, extra):
        raise MissingExtraError(f"this needs the package '{module}', which isn't installed: pip install 'x[{extra}]'")

    monkeypatch.setattr(load_tensorrt, "require", missing)
    build = verdict("tensorrt-11").build
    assert (build.can, build.fix) == (False, "pip install 'lmmprune[gpu]'")
    assert build.why == "this needs the package 'tensorrt', which isn't installed"
    monkeypatch.setattr(load_tensorrt, "load", lambda target: object())
    assert "no NVIDIA GPU here" in verdict("tensorrt-11").build.why
    monkeypatch.setattr(machine, "gpus", lambda: (ADA,))
    assert verdict("tensorrt-11").build == doctor.Ability(can=True, why="for sm89")


def test_every_extra_for_users_is_known(monkeypatch, versions):

    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML by itself")
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    found = doctor.diagnose().packages
    assert {*extras} - {"dev", "docs"} == {*found} - {"base"}
    assert [package.name for package in found["triton"]] == ["tritonclient"]
    assert doctor.missing(found, "triton") == ["tritonclient"]


def test_graphs_are_made_for_every_target():
    pytest.importorskip("torch", reason="the run-time's own environment has no export packages")
    assert all(verdict(name).export.can for name in TARGETS)


def test_engines_run_where_driver_and_packages_are(monkeypatch):
    from engine_fixtures import fake_gpu
    from fake_cuda import FakeCudart

    with fake_gpu():
        assert verdict("tensorrt-rtx").run == doctor.Ability(can=True, why="sm89")
    with fake_gpu(FakeCudart(driver=0)):
        run = verdict("tensorrt-rtx").run
        assert (run.can, run.why, run.fix) == (False, "no NVIDIA driver is loaded", "")
