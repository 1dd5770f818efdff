"""tiny-llava as other tools would have quantized it, written number by number from their formats' definitions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoints import Tensors, copy_tiny

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A format.

    ``form`` is ``awq``, ``gptq``, ``gptq_v2``, ``packed`` or ``plain``; ``group`` None: one scale for an output;
    ``shuffled``: inputs of a group are strewn over the weight, as act-order leaves them.
    """

    form: str
    bits: int = 4
    group: int | None = 64
    symmetric: bool = False
    shuffled: bool = False
    scales: torch.dtype = torch.float16

    @property
    def config(self) -> dict[str, Any]:
        size = -1 if self.group is None else self.group
        if self.form == "awq":
            return {"quant_method": "awq", "bits": 4, "group_size": size, "zero_point": True, "version": "gemm"}
        if self.form.startswith("gptq"):
            common = {"bits": self.bits, "group_size": size, "desc_act": self.shuffled, "sym": self.symmetric}
            return {"quant_method": "gptq", "checkpoint_format": self.form, **common}
        weights = {
            "num_bits": self.bits,
            "type": "int",
            "symmetric": self.symmetric,
            "strategy": "channel" if self.group is None else "group",
            "group_size": self.group,
            "actorder": "group" if self.shuffled else None,
        }
        activations = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
        form = "pack-quantized" if self.form == "packed" else "int-quantized"
        scheme = {
            "targets": ["Linear"],
            "weights": weights,
            "input_activations": activations if self.form == "plain" else None,
            "output_activations": None,
        }
        return {
            "quant_method": "compressed-tensors",
            "format": form,
            "config_groups": {"group_0": scheme},
            "ignore": ["lm_head", "re:.*vision_tower.*", "re:.*multi_modal_projector.*"],
            "quantization_status": "compressed",
        }


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A weight in integers from 0 on ``[K,N]``, with scales and zero points ``[G,N]`` and the group of each input."""

    integers: np.ndarray
    scales: torch.Tensor
    zeros: np.ndarray
    owners: np.ndarray

    def worth(self) -> np.ndarray:
        """What it stands for, ``[K,N]`` in float64, one number at a time."""
        scales = self.scales.double().numpy()
        result = np.empty(self.integers.shape)
        for k, owner in enumerate(self.owners):
            result[k] = (self.integers[k].astype(np.int64) - self.zeros[owner].astype(np.int64)) * scales[owner]
        return result


def whole(weight: torch.Tensor, kind: Kind, seed: int) -> Whole:
    """Round a weight ``[N,K]`` of a checkpoint."""
    values = weight.double().numpy().T
    inputs, outputs = values.shape
    group = kind.group or inputs
    owners = np.arange(inputs) // group
    if kind.shuffled:
        owners = np.random.default_rng(seed).permutation(owners)
    most, middle = 2**kind.bits - 1, 2 ** (kind.bits - 1)
    scales = np.empty((math.ceil(inputs / group), outputs))
    zeros = np.full(scales.shape, middle, np.int64)
    for g in range(len(scales)):
        low, high = np.minimum(values[owners == g].min(axis=0), 0), np.maximum(values[owners == g].max(axis=0), 0)
        scales[g] = np.maximum(-low, high) / (middle - 1) if kind.symmetric else (high - low) / most
    rounded = torch.from_numpy(scales).to(kind.scales)
    held = rounded.double().numpy()
    integers = np.empty(values.shape, np.int64)
    for g in range(len(scales)):
        if not kind.symmetric:
            zeros[g] = np.clip(np.rint(-np.minimum(values[owners == g].min(axis=0), 0) / held[g]), 0, most)
        integers[owners == g] = np.clip(np.rint(values[owners == g] / held[g]) + zeros[g], 0, most)
    return Whole(integers=integers, scales=rounded, zeros=zeros, owners=owners)


def words(numbers: np.ndarray, bits: int, axis: int, order: tuple[int, ...] | None = None) -> torch.Tensor:
    """Put numbers into words of 32 bits along an axis, one after the other."""
    rows = numbers if axis else numbers.T
    count = 32 // bits
    result = np.zeros((rows.shape[0], math.ceil(rows.shape[1] / count)), np.uint32)
    for place in range(rows.shape[1]):
        word, field = divmod(place, count)
        if order is not None:
            field = order.index(field)
        result[:, word] |= rows[:, place].astype(np.uint32) << np.uint32(bits * field)
    signed = torch.from_numpy(result.view(np.int32).copy())
    return signed if axis else signed.T.contiguous()


def parts(found: Whole, kind: Kind) -> Tensors:
    """The tensors of a weight, by the last part of their names."""
    bits, scales = kind.bits, found.scales
    if kind.form == "awq":
        return {
            "qweight": words(found.integers, 4, 1, AWQ_ORDER),
            "qzeros": words(found.zeros, 4, 1, AWQ_ORDER),
            "scales": scales,
        }
    if kind.form.startswith("gptq"):
        less = 1 if kind.form == "gptq" else 0
        return {
            "qweight": words(found.integers, bits, 0),
            "qzeros": words((found.zeros - less) % 2**bits, bits, 1),
            "scales": scales,
            "g_idx": torch.from_numpy(found.owners.astype(np.int32)),
        }
    made: Tensors = {"weight_scale": scales.T.contiguous()}
    if kind.form == "packed":
        made["weight_packed"] = words(found.integers.T, bits, 1)
        made["weight_shape"] = torch.tensor(found.integers.T.shape)
        if kind.shuffled:
            made["weight_g_idx"] = torch.from_numpy(found.owners.astype(np.int32))
        if not kind.symmetric:
            made["weight_zero_point"] = words(found.zeros.T, bits, 0)
        return made
    made["weight"] = torch.from_numpy((found.integers.T - 128).astype(np.int8))
    if not kind.symmetric:
        made["weight_zero_point"] = torch.from_numpy((found.zeros.T - 128).astype(np.int8))
    return made


def quantized(folder: Path, kind: Kind) -> tuple[Path, dict[str, Whole]]:
    """Write tiny-llava with the decoder's products in a format; return also what they are, by their names on disk."""
    known: dict[str, Whole] = {}

    def change(tensors: Tensors) -> Tensors:
        found: Tensors = {}
        for name, weight in tensors.items():
            if not (".layers." in name and "language_model" in name and name.endswith("proj.weight")):
                found[name] = weight
                continue
            # q, k and v read the same activation: act-order sorts it once.
            shared = name.replace("k_proj", "q_proj").replace("v_proj", "q_proj").replace("up_proj", "gate_proj")
            known[name] = whole(weight, kind, sum(shared.encode()))
            stem = name.removesuffix("weight")
            found |= {stem + part: tensor for part, tensor in parts(known[name], kind).items()}
        return found

    return copy_tiny(folder, config={"quantization_config": kind.config}, tensors=change), known


def dequantized(folder: Path, known: dict[str, Whole]) -> Path:
    """Write tiny-llava in float32 with what the integers are worth."""

    def change(tensors: Tensors) -> Tensors:
        made = {name: torch.from_numpy(one.worth().T.astype(np.float32)) for name, one in known.items()}
        return {name: weight.float() for name, weight in tensors.items()} | made

    return copy_tiny(folder, config={"dtype": "float32"}, tensors=change)
