"""Checkpoints in integers of a kind that isn't read are named with what to do; those that only say so are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Tensors, copy_tiny

from lmmprune.errors import ModelError
from lmmprune.models.source import resolve


def _gptq(name: str, weight: torch.Tensor) -> Tensors:
    stem = name.removesuffix("weight")
    return {stem + "qweight": torch.zeros(4, 4, dtype=torch.int32), stem + "g_idx": torch.zeros(4, dtype=torch.int32)}


def _eight_bits(name: str, weight: torch.Tensor) -> Tensors:
    return {name: weight.to(torch.int8), name.removesuffix("weight") + "SCB": torch.ones(len(weight))}


def _half_bytes(name: str, weight: torch.Tensor) -> Tensors:
    return {name: torch.zeros(weight.numel() // 2, 1, dtype=torch.uint8), f"{name}.absmax": torch.ones(4)}


def _fp8(name: str, weight: torch.Tensor) -> Tensors:
    return {name: weight.to(torch.float8_e4m3fn), f"{name}_scale_inv": torch.ones(1)}


KINDS: dict[str, tuple[dict[str, Any], Any, str]] = {
    "bitsandbytes, 4": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        _half_bytes,
        r"4 bits .*dequantize\(\)",
    ),
    "bitsandbytes, 8": ({"load_in_8bit": True}, _eight_bits, "by bitsandbytes, 8 bits"),
    "fp8": ({"quant_method": "fp8"}, _fp8, r"by FP8 .*FineGrainedFP8Config\(dequantize=True\)"),
    "hqq": ({"quant_method": "hqq"}, _half_bytes, r"by HQQ .*dequantize"),
    "aqlm": ({"quant_method": "aqlm"}, _gptq, "by AQLM"),
    "something new": ({"quant_method": "later"}, _gptq, "by 'later'"),
}


def _pack(how: Any) -> Any:
    def change(tensors: Tensors) -> Tensors:
        found: Tensors = {}
        for name, weight in tensors.items():
            found |= how(name, weight) if "language_model" in name and name.endswith("proj.weight") else {name: weight}
        return found

    return change


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nested", [False, True])
def test_every_kind_is_named_with_what_to_do(kind: str, nested: bool, tmp_path: Path) -> None:
    described, how, line = KINDS[kind]
    place = {"text" if nested else "config": {"quantization_config": described}}
    folder = copy_tiny(tmp_path / "model", tensors=_pack(how), **place)
    with pytest.raises(ModelError, match=f"is quantized already, .*{line}"):
        _ = resolve(str(folder)).entries


def test_packed_weights_are_seen_without_a_description(tmp_path: Path) -> None:
    folder = copy_tiny(tmp_path / "model", tensors=_pack(_gptq))
    with pytest.raises(ModelError, match=r"is quantized already \('.*' is INT32 and \d+ more"):
        _ = resolve(str(folder)).entries


def test_floating_point_weights_with_a_description_are_read(tmp_path: Path) -> None:
    described = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    source = resolve(str(copy_tiny(tmp_path / "model", config={"quantization_config": described})))
    assert source.entries
    assert source.remarks == (
        "config.json says that the weights are quantized by bitsandbytes, 4 bits, but they are floating point:"
        " exported as they are",
    )
    # transformers would load a model with this setting through bitsandbytes.
    assert not hasattr(source.config, "quantization_config")
