import json

import pytest

from lmmprune.compiler.cli import main
from lmmprune.compiler.targets.target import Target
from lmmprune.compiler.targets.targets import TARGETS, names, resolve
from lmmprune.errors import TargetError


def test_every_name_leads_to_one_target():
    every = list(names())
    assert len(every) == len(set(every))
    for target in TARGETS.values():
        assert {resolve(name).name for name in target.names} == {target.name}


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("tensorrt", "tensorrt-11"),
        ("jetson-orin-jp6", "tensorrt-10.3"),
        ("jetson-thor-jp7.1", "tensorrt-10.13"),
        ("jetson-orin-jp7.2", "tensorrt-10.16"),
        ("jetson-thor-jp7.2", "tensorrt-10.16"),
    ],
)
def test_aliases(alias, name):
    assert resolve(alias).name == name


def test_boards_state_their_architecture():
    assert resolve("jetson-orin-jp6").boards["jetson-orin-jp6"] == "sm87"
    assert resolve("jetson-thor-jp7.2").boards["jetson-thor-jp7.2"] == "sm110"


def test_unknown_target_says_what_was_meant():
    with pytest.raises(TargetError, match=r"no target 'tensort-rtx'; did you mean 'tensorrt-rtx'\?"):
        resolve("tensort-rtx")


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_facts_agree_with_each_other(target: Target):
    assert target.opset <= target.max_opset
    assert target.dtype in target.dtypes
    # The high-level operators exist from opset 23 on.
    assert not target.native_ops or target.opset >= 23
    assert target.int8 == ("u8s8" if target.device == "cpu" else "s8s8")
    assert target.dtype == ("float32" if target.device == "cpu" else "float16")
    assert not target.architectures or target.compiled


def test_operators_by_tensorrt_version():
    assert not resolve("tensorrt-10.13").takes("Attention")
    assert resolve("tensorrt-10.16").takes("Attention")
    assert not resolve("tensorrt-10.13").takes("TensorScatter")


def test_architectures_are_the_builders():
    trt = pytest.importorskip("tensorrt_rtx")
    known = {name for name in dir(trt.ComputeCapability) if name.startswith("SM")}
    assert {arch.upper() for arch in resolve("tensorrt-rtx").architectures} == known


def test_command_prints_the_matrix(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["targets", "--json"])
    assert stop.value.code == 0
    rows = json.loads(capsys.readouterr().out)["targets"]
    assert [row["name"] for row in rows] == list(TARGETS)
    assert "Attention" in next(row for row in rows if row["name"] == "tensorrt-rtx")["native_ops"]
    with pytest.raises(SystemExit):
        main(["targets"])
    assert "jetson-orin-jp6" in capsys.readouterr().out
