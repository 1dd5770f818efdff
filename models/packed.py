"""Checkpoints that another tool quantized: read, or refused by name; those that only say so are told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import onnx_ir as ir

from lmmprune.errors import ModelError
from lmmprune.models.configure import parts
from lmmprune.models.quantized.collect import collect
from lmmprune.models.quantized.described import SUPPORTED, Described, describe
from lmmprune.stored import Stored

_KEYS = ("quantization_config", "compression_config")
_READ = ("awq", "gptq", "compressed-tensors")
_ORIGINAL = "give the floating-point checkpoint that it was made from"
_DEQUANTIZE = "give the floating-point checkpoint that it was made from, or save it dequantized:"

# quant_method -> (what people call it, what to do).
_METHODS = {
    "awq": ("AWQ", _ORIGINAL),
    "gptq": ("GPTQ", _ORIGINAL),
    "auto-round": ("AutoRound", _ORIGINAL),
    "intel/auto-round": ("AutoRound", _ORIGINAL),
    "compressed-tensors": (
        "compressed-tensors",
        f"{_DEQUANTIZE} from_pretrained(..., quantization_config=CompressedTensorsConfig(run_compressed=False))",
    ),
    "bitsandbytes": ("bitsandbytes", f"{_DEQUANTIZE} model.dequantize(), then save_pretrained"),
    "fp8": ("FP8", f"{_DEQUANTIZE} from_pretrained(..., quantization_config=FineGrainedFP8Config(dequantize=True))"),
    "fbgemm_fp8": ("FBGEMM FP8", _ORIGINAL),
    "hqq": ("HQQ", f"{_DEQUANTIZE} model.dequantize(), then save_pretrained"),
    "aqlm": ("AQLM", _ORIGINAL),
    "quanto": ("Quanto", _ORIGINAL),
    "torchao": ("torchao", _ORIGINAL),
    "eetq": ("EETQ", _ORIGINAL),
    "vptq": ("VPTQ", _ORIGINAL),
    "higgs": ("HIGGS", f"{_DEQUANTIZE} model.dequantize(), then save_pretrained"),
    "spqr": ("SpQR", _ORIGINAL),
    "bitnet": ("BitNet", _ORIGINAL),
    "quark": ("Quark", _ORIGINAL),
    "mxfp4": ("MXFP4", f"{_DEQUANTIZE} from_pretrained(..., quantization_config=Mxfp4Config(dequantize=True))"),
    "fp_quant": ("FP-Quant", _ORIGINAL),
    "modelopt": ("ModelOpt", _ORIGINAL),
}
# Types that weights have only when they are packed or scaled.
_PACKED = {
    *(ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16, ir.DataType.INT32),
    *(ir.DataType.UINT32, ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E5M2),
}


def take_out(config: Any, raw: Mapping[str, Any]) -> dict[str, Any] | None:
    """Take the description of a quantization out of a configuration, and return it; None if there is none.

    It may stand beside the parts or in the text model's.
    """
    places = (raw, raw.get("text_config"), raw.get("vision_config"))
    found = [place[key] for place in places if isinstance(place, Mapping) for key in _KEYS if place.get(key)]
    for part in parts(config):
        for key in _KEYS:
            if hasattr(part, key):
                delattr(part, key)
    return next((dict(entry) for entry in found if isinstance(entry, Mapping)), None)


def described(directory: Path, said: Mapping[str, Any] | None) -> Described | None:
    """Return what a configuration says of weights that can be read as the integers that they are; None: of no such.

    Raises:
        ModelError: It is one of the methods that are read, in a form that isn't.
    """
    method = None if said is None else str(said.get("quant_method") or _guess(said)).lower()
    return describe(directory, said, method) if said is not None and method in _READ else None


def unpack(directory: Path, said: Mapping[str, Any] | None, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Return a checkpoint's tensors, with one ``PackedWeight`` in place of the parts of each quantized weight.

    Args:
        directory: The checkpoint.
        said: What its configuration says of a quantization (see ``take_out``).
        tensors: All of its tensors.

    Raises:
        ModelError: Some are packed integers or 8-bit floats of a kind that isn't read.
    """
    odd = _odd(tensors)
    if not odd:
        return dict(tensors)
    scheme = described(directory, said)
    found = dict(tensors) if scheme is None else collect(tensors, scheme)
    if left := _odd(found):
        _refuse(directory, said, left)
    return found


def _odd(tensors: Mapping[str, Stored]) -> list[Stored]:
    return [entry for entry in tensors.values() if entry.dtype in _PACKED and len(entry.shape) > 0]


def _refuse(directory: Path, said: Mapping[str, Any] | None, odd: Sequence[Stored]) -> NoReturn:
    """Refuse a checkpoint whose weights are quantized in a way that isn't read."""
    example = f"'{odd[0].name}' is {odd[0].dtype.name}"
    if said is None:
        raise ModelError(
            f"'{directory}' is quantized already ({example} and {len(odd) - 1} more, though config.json has no"
            f" quantization_config): {_ORIGINAL}"
        )
    title, advice = _of(said)
    raise ModelError(
        f"'{directory}' is quantized already, by {title}{_bits(said)} (quantization_config in config.json;"
        f" {example}): what is read is {SUPPORTED}; {advice}"
    )


def remark(said: Mapping[str, Any] | None) -> str | None:
    """Say that weights were taken for what they are, where the configuration of a floating-point checkpoint differs."""
    if said is None:
        return None
    return (
        f"config.json says that the weights are quantized by {_of(said)[0]}{_bits(said)}, but they are"
        " floating point: exported as they are"
    )


def _of(said: Mapping[str, Any]) -> tuple[str, str]:
    method = str(said.get("quant_method") or _guess(said)).lower()
    return _METHODS.get(method, (f"'{method}'", _ORIGINAL))


def _guess(said: Mapping[str, Any]) -> str:
    """Name the tool of a description that doesn't, as older ones don't."""
    if any(key.startswith(("load_in_", "bnb_")) for key in said):
        return "bitsandbytes"
    if "config_groups" in said or "sparsity_config" in said:
        return "compressed-tensors"
    return "gptq" if "desc_act" in said else "awq" if "zero_point" in said else "another tool"


def _bits(said: Mapping[str, Any]) -> str:
    bits = said.get("bits") or said.get("w_bit")
    if bits is None:
        bits = 4 if said.get("load_in_4bit") else 8 if said.get("load_in_8bit") else None
    return f", {bits} bits" if isinstance(bits, int) else ""
