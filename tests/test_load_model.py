"""The reference of a large model: its decoder's weights stay in half precision, and it computes what float32 does."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from exports import exported_again

from lmmprune.compiler.targets import machine
from lmmprune.compiler.verify.reference import Cut, CutRefused, load_model, say, see
from lmmprune.compiler.verify.verify import verify
from lmmprune.models.registry import tiny_llava_dir
from lmmprune.models.source import resolve

# The package has a function of the same name.
MODULE = importlib.import_module("lmmprune.compiler.verify.reference.load_model")


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """tiny-llava in float16, whose configuration goes on saying float32."""
    shutil.copytree(
        tiny_llava_dir(), tmp_path / "half", ignore=shutil.ignore_patterns("*.py", "examples", "__pycache__")
    )
    (file,) = (tmp_path / "half").glob("*.safetensors")
    weights = {name: tensor.half() for name, tensor in safetensors.torch.load_file(file).items()}
    safetensors.torch.save_file(weights, file, metadata={"format": "pt"})
    assert "float16" not in json.loads((tmp_path / "half" / "config.json").read_text()).get("dtype", "")
    return tmp_path / "half"


def said(model: Any) -> tuple[Any, ...]:
    size = model.config.vision_config.image_size
    picture = torch.linspace(-1, 1, 3 * size * size).reshape(1, 3, size, size)
    seen = see(model, "freepruner", {"pivot_fraction": 0.75, "shallow_layer": 1}, [Cut("vision_output", 36)], picture)
    (kept,) = seen.kept.values()
    words = say(
        model, "uniform", {}, [], torch.from_numpy(seen.features[0]), kept[0], [1, 5], [7, 9, 8],
        positions={"vision": "contiguous", "llm": "contiguous"}, patches=144, grid=None, steps=2,
        special_ids=frozenset(),
    )  # fmt: skip
    return kept, seen.features, words.logits


def test_widened_as_it_is_used(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_model(resolve(str(half)))
    assert {parameter.dtype for parameter in whole.parameters()} == {torch.float32}
    expected = said(whole)
    monkeypatch.setattr(MODULE, "LARGE_BYTES", 0)
    model = load_model(resolve(str(half)))
    assert model.lm_head.weight.dtype == model.get_decoder().layers[0].mlp.up_proj.weight.dtype == torch.float16
    assert model.get_decoder().norm.weight.dtype == torch.float32
    for found, wanted in zip(said(model), expected, strict=True):
        assert (found == wanted).all()
    ids = torch.tensor([[1, 5, 9, 11]])
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, whole(input_ids=ids).logits), "transformers' own way through it"


def test_too_large_for_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = exported_again(ratio=0.5)
    monkeypatch.setattr(machine, "free_memory", lambda: 2**20)
    with pytest.raises(CutRefused, match=r"the model takes 0\.0 GiB in float32, 0\.0 GiB are free"):
        load_model(resolve("tiny-llava"))
    *_, last = verify(path, samples=1, progress=lambda *_: None)
    assert (last.name, last.passed) == ("parity", None)
    assert last.found.startswith("not compared: the model takes")
