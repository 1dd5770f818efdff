"""Find the packed weights of a checkpoint among its tensors, and hold their parts against what it says of itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from lmmprune.errors import ModelError
from lmmprune.models.quantized.described import Described
from lmmprune.models.quantized.layouts import AwqWeight, CompressedWeight, GptqWeight, PlainWeight
from lmmprune.models.quantized.packed_weight import PackedWeight
from lmmprune.models.quantized.words import WORD
from lmmprune.stored import Stored

Parts = dict[str, Stored]

_FLOATS = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT)
_WORDS, _BYTES, _LONGS = (ir.DataType.INT32,), (ir.DataType.INT8,), (ir.DataType.INT64, ir.DataType.INT32)
# Scales of activations and of the cache, which aren't carried over.
_LEFT = ("input_scale", "input_zero_point", "output_scale", "output_zero_point", "k_scale", "v_scale")

# Form -> the part that makes a module a quantized one, and all that there may be.
_PARTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "awq": ("qweight", ("qweight", "qzeros", "scales")),
    "gptq": ("qweight", ("qweight", "qzeros", "scales", "g_idx")),
    "gptq_v2": ("qweight", ("qweight", "qzeros", "scales", "g_idx")),
    "pack-quantized": (
        "weight_packed",
        ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx"),
    ),
    "int-quantized": ("weight", ("weight", "weight_scale", "weight_zero_point")),
}
_OPTIONAL = {"g_idx", "weight_zero_point", "weight_g_idx"}


def collect(tensors: Mapping[str, Stored], said: Described) -> dict[str, Stored]:
    """Return a checkpoint's tensors, with one weight in place of the parts of each packed one.

    Args:
        tensors: All of them, by their names on disk.
        said: How they are packed.

    Raises:
        ModelError: A part is missing, or is of another shape or type than it must be.
    """
    mark, names = _PARTS[said.form]
    result = {name: entry for name, entry in tensors.items() if name.rpartition(".")[2] not in _LEFT}
    for name, entry in tensors.items():
        module, _, last = name.rpartition(".")
        if last != mark or (mark == "weight" and entry.dtype != ir.DataType.INT8):
            continue
        parts = {part: tensors[f"{module}.{part}"] for part in names if f"{module}.{part}" in tensors}
        if lost := [part for part in names if part not in parts and part not in _OPTIONAL]:
            raise ModelError(f"'{name}' has no '{lost[0]}' beside it: is the checkpoint whole?")
        for part in parts:
            del result[f"{module}.{part}"]
        result[f"{module}.weight"] = _MAKERS[said.form](f"{module}.weight", parts, said)
    return result


def _awq(name: str, parts: Parts, said: Described) -> PackedWeight:
    rows, words = _pair(parts["qweight"])
    outputs = words * WORD // said.bits
    common = _common(name, parts, said, "qweight", (outputs, rows), "scales")
    groups = math.ceil(rows / common["group"])
    _check(parts, "qweight", _WORDS)
    _check(parts, "qzeros", _WORDS, (groups, words))
    _check(parts, "scales", _FLOATS, (groups, outputs))
    return AwqWeight(**common)


def _gptq(name: str, parts: Parts, said: Described) -> PackedWeight:
    words, outputs = _pair(parts["qweight"])
    inputs = words * WORD // said.bits
    common = _common(name, parts, said, "qweight", (outputs, inputs), "scales")
    groups = math.ceil(inputs / common["group"])
    _check(parts, "qweight", _WORDS)
    _check(parts, "qzeros", _WORDS, (groups, math.ceil(outputs * said.bits / WORD)))
    _check(parts, "scales", _FLOATS, (groups, outputs))
    _check(parts, "g_idx", _LONGS, (inputs,))
    return GptqWeight(**common, less=0 if said.form == "gptq_v2" else 1)


def _compressed(name: str, parts: Parts, said: Described) -> PackedWeight:
    outputs, words = _pair(parts["weight_packed"])
    _check(parts, "weight_shape", _LONGS, (2,))
    rows, inputs = (int(size) for size in parts["weight_shape"].read())
    if (rows, math.ceil(inputs * said.bits / WORD)) != (outputs, words):
        _refuse(
            parts["weight_packed"], f"words of {said.bits} bits for {[rows, inputs]} numbers, as 'weight_shape' says"
        )
    common = _common(name, parts, said, "weight_packed", (outputs, inputs), "weight_scale")
    groups = math.ceil(inputs / common["group"])
    _check(parts, "weight_packed", _WORDS)
    _check(parts, "weight_scale", _FLOATS, *_scale_shapes(outputs, groups))
    _check(parts, "weight_zero_point", _WORDS, (math.ceil(outputs * said.bits / WORD), groups))
    _check(parts, "weight_g_idx", _LONGS, (inputs,))
    return CompressedWeight(**common)


def _plain(name: str, parts: Parts, said: Described) -> PackedWeight:
    outputs, inputs = _pair(parts["weight"])
    common = _common(name, parts, said, "weight", (outputs, inputs), "weight_scale")
    groups = math.ceil(inputs / common["group"])
    _check(parts, "weight_scale", _FLOATS, *_scale_shapes(outputs, groups))
    _check(parts, "weight_zero_point", _BYTES, *_scale_shapes(outputs, groups))
    return PlainWeight(**common)


_MAKERS: Mapping[str, Callable[[str, Parts, Described], PackedWeight]] = {
    "awq": _awq,
    "gptq": _gptq,
    "gptq_v2": _gptq,
    "pack-quantized": _compressed,
    "int-quantized": _plain,
}


def _common(
    name: str, parts: Parts, said: Described, integers: str, shape: tuple[int, int], scales: str
) -> dict[str, Any]:
    return {
        "file": parts[integers].file,
        "name": name,
        "offset": parts[integers].offset,
        "dtype": parts[scales].dtype,
        "shape": shape,
        "parts": parts,
        "bits": said.bits,
        "group": min(said.group or shape[1], shape[1]),
    }


def _pair(entry: Stored) -> tuple[int, int]:
    if len(entry.shape) != 2:
        _refuse(entry, "two dimensions")
    return entry.shape[0], entry.shape[1]


def _scale_shapes(outputs: int, groups: int) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of numbers for groups; for one group or all outputs there are several ways to write them."""
    return ((outputs, groups),) if groups > 1 else ((outputs, 1), (outputs,), (1,), (), (1, 1))


def _check(parts: Parts, part: str, dtypes: tuple[ir.DataType, ...], *shapes: tuple[int, ...]) -> None:
    if part not in parts:
        return
    entry = parts[part]
    if entry.dtype not in dtypes:
        _refuse(entry, " or ".join(kind.name for kind in dtypes))
    if shapes and entry.shape not in shapes:
        _refuse(entry, f"shape {list(shapes[0])}")


def _refuse(entry: Stored, expected: str) -> None:
    raise ModelError(
        f"'{entry.name}' is {entry.dtype.name} {list(entry.shape)}: expected {expected}, by quantization_config in"
        " config.json; is the checkpoint whole, and do both belong together?"
    )


def odd_scales(weight: PackedWeight, kind: Any) -> int:
    """Return how many scales a type can't hold as they are."""
    scales = weight.scales()
    return int(np.count_nonzero(scales.astype(kind).astype(np.float32) != scales.astype(np.float32)))
