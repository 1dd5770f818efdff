"""What an export says of its own loss: the same figure that comparing the two bundles gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from exports import exported

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.card.card import make_card

Cli = Callable[..., tuple[int, str, str]]
SCENES = Path("models/tiny_llava/calib")


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The eight samples that are looked at, as data of ``compare``."""
    folder = tmp_path_factory.mktemp("eight")
    rows = [json.loads(line) for line in (SCENES / "calib.jsonl").read_text(encoding="utf-8").splitlines()[:8]]
    lines = [json.dumps({"image": str((SCENES / row["image"]).resolve()), "prompt": row["prompt"]}) for row in rows]
    (folder / "eight.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder / "eight.jsonl"


@pytest.mark.parametrize(
    "options",
    [
        {"method": "random", "ratio": 0.9},
        {"method": "fastv", "ratio": 0.5, "int8": True},
        {"method": "cdpruner", "ratio": 0.75},  # a graph of its own chooses
        {"int8": True},
    ],
    ids=["random", "fastv-int8", "cdpruner", "int8"],
)
def test_the_loss_is_what_compare_finds(options: dict[str, Any], eight: Path, cli: Cli) -> None:
    unpruned, _ = exported()
    bundle, _ = exported(**options, calibration=SCENES / "calib.jsonl")
    loss = Bundle.open(bundle).manifest.loss
    assert loss is not None
    status, out, _ = cli("compare", unpruned, bundle, "--data", eight, "--max-new-tokens", 5, "--no-timing", "--json")
    assert status == 0
    measures = json.loads(out)["others"][0]["measures"]
    assert loss.kl == pytest.approx(measures["kl"]["value"], rel=1e-3, abs=1e-7)
    assert loss.same_first == round(8 * measures["first"]["value"])
    assert loss.samples == 8


def test_pictures_that_judge_dont_change_the_graphs() -> None:
    with_loss, _ = exported(method="random", ratio=0.9, calibration=SCENES / "calib.jsonl")
    without, _ = exported(method="random", ratio=0.9)
    for graph in ("vision.onnx", "decoder.onnx"):
        assert (with_loss / graph).read_bytes() == (without / graph).read_bytes()
    assert sorted(file.name for file in with_loss.iterdir()) == sorted(file.name for file in without.iterdir())


def test_the_command_says_what_is_known(tmp_path: Path, cli: Cli) -> None:
    line = ("export", "--model", "tiny-llava", "--keep", 40, "-o", tmp_path / "out", "--force")
    status, _, err = cli(*line)
    assert (status, err.splitlines()[-1]) == (
        0,
        f"loss: not measured; lmmprune compare UNPRUNED {tmp_path / 'out'} --data PICTURES",
    )
    status, out, err = cli(*line, "--calib", SCENES / "calib.jsonl")
    assert status == 0
    assert "loss on 8 of your pictures: KL " in err
    assert "loss" not in out
    status, out, err = cli(*line, "--calib", SCENES / "calib.jsonl", "--json")
    assert (status, json.loads(out)["loss"]["samples"]) == (0, 8)


def test_a_card_tells_it() -> None:
    path, _ = exported(method="random", ratio=0.9, calibration=SCENES / "calib.jsonl")
    bundle = Bundle.open(path)
    assert bundle.manifest.loss is not None
    found = make_card(bundle)
    told = "On 8 samples of `calib.jsonl`, led through the unpruned model's greedy answers: KL "
    assert f"{told}{bundle.manifest.loss.kl:.3g} nats" in found.markdown
    assert not found.measured, "it stands for no comparison"
    assert "### While exporting" not in make_card(Bundle.open(exported(method="random", ratio=0.9)[0])).markdown
