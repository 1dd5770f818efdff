"""Rotations and windows that change with the length: served as far as they are constant, refused beyond."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import copy_tiny
from hub_layouts.one_trace import one_trace
from short_request import short_request

from lmmprune.compiler.export.export import export
from lmmprune.compiler.verify.verify import verify
from lmmprune.models.source import resolve

# head_dim is 32: a factor for each of 16 frequencies.
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.05 * n for n in range(16)],
    "long_factor": [4.0 + n for n in range(16)],
    "original_max_position_embeddings": 300,
    "factor": 2.0,
}
MISTRAL = {"model_type": "mistral", "attention_bias": None, "mlp_bias": None}
QWEN = {"model_type": "qwen2", "attention_bias": None, "mlp_bias": None}

KINDS: dict[str, tuple[dict[str, Any], int, str]] = {
    "plain": ({}, 512, ""),
    "linear": ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, 512, ""),
    "dynamic": ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, 512, "'dynamic'"),
    "dynamic, as it was written": (
        {"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_theta": 1e4},
        512,
        "'dynamic'",
    ),
    "longrope": ({"rope_parameters": LONG}, 300, "'longrope': behind 300 positions"),
    "window": (MISTRAL | {"sliding_window": 256}, 256, "sliding window of 256 tokens"),
    "no window": (MISTRAL | {"sliding_window": None}, 512, ""),
    "window that is off": (QWEN | {"sliding_window": 128, "use_sliding_window": False}, 512, ""),
    "window of no layer": (
        QWEN | {"sliding_window": 128, "use_sliding_window": True, "max_window_layers": 4},
        512,
        "",
    ),
    "window of some layers": (
        QWEN | {"sliding_window": 128, "use_sliding_window": True, "max_window_layers": 2},
        128,
        "sliding window of 128 tokens",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_positions_end_where_the_model_changes(kind: str, tmp_path: Path) -> None:
    text, positions, why = KINDS[kind]
    source = resolve(str(copy_tiny(tmp_path / "model", text=text)))
    assert source.decoder.max_positions == positions
    assert [line for line in source.remarks if "positions end at" in line and why in line] == list(source.remarks)
    assert bool(source.remarks) == bool(why)


def _logits(folder: Path, count: int) -> torch.Tensor:
    """The last logits of transformers' own language model, over so many tokens."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.arange(count)[None] % 50 + 6
    with torch.no_grad():
        return model(input_ids=ids).logits[0, -1]


@pytest.mark.parametrize("kind", ["longrope", "window"])
def test_the_limit_is_the_last_length_that_is_alike(kind: str, tmp_path: Path) -> None:
    """transformers itself changes right behind it: compared with a model that has the first part's numbers for good."""
    text, positions, _ = KINDS[kind]
    folder = copy_tiny(tmp_path / "model", text=text)
    constant = {"rope_parameters": LONG | {"original_max_position_embeddings": 511}} if kind == "longrope" else text
    constant = constant | ({"sliding_window": None} if kind == "window" else {})
    other = copy_tiny(tmp_path / "other", text=constant)
    if kind == "longrope":
        # The factor on cosine and sine hangs on the original length: give both the same.
        for place in (folder, other):
            raw = json.loads((place / "config.json").read_text())
            raw["text_config"]["rope_parameters"]["attention_factor"] = 1.1
            (place / "config.json").write_text(json.dumps(raw))
    assert torch.allclose(_logits(folder, positions), _logits(other, positions), atol=1e-5)
    assert not torch.allclose(_logits(folder, positions + 1), _logits(other, positions + 1), atol=1e-3)


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "window"])
def test_a_bundle_is_exported_and_verified(kind: str, tmp_path: Path) -> None:
    folder = copy_tiny(tmp_path / "model", text=KINDS[kind][0])
    with one_trace():
        report = export(short_request(model=str(folder), output=tmp_path / "bundle", method="fastv", ratio=0.5))
    assert report.manifest.max_positions == KINDS[kind][1]
    assert any(KINDS[kind][2] in line for line in report.warnings)
    checks = verify(tmp_path / "bundle", samples=1, model=str(folder))
    assert [check.name for check in checks if check.passed is not True] == []
