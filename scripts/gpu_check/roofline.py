"""How near a time is to what the GPU can do at most: arithmetic in the prefill, memory traffic in a decode step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lmmprune.compiler.flops.formula import kv_bytes, prefill, uniform
from lmmprune.models.family import DecoderSpec


@dataclass(frozen=True, kw_only=True)
class Peak:
    """What a GPU reaches: 1e12 operations per second by type of the factors, 1e9 bytes per second of its memory."""

    tera: Mapping[str, float]
    giga_bytes: float


# Dense products, from NVIDIA's data sheets; a part of the GPU's name -> its numbers.
KNOWN: Mapping[str, Peak] = {
    "H200": Peak(tera={"float16": 989.5, "int8": 1979.0}, giga_bytes=4800),
    "H100 80GB HBM3": Peak(tera={"float16": 989.5, "int8": 1979.0}, giga_bytes=3350),
    "A100": Peak(tera={"float16": 312.0, "int8": 624.0}, giga_bytes=2039),
    "L4": Peak(tera={"float16": 121.0, "int8": 242.0}, giga_bytes=300),
}


def known(gpu: str) -> Peak | None:
    """Return the data sheet's numbers of a GPU, None where it isn't in the table."""
    words = gpu.split()
    return next((peak for name, peak in KNOWN.items() if all(word in words for word in name.split())), None)


def prefill_tera(spec: DecoderSpec, tokens: int, milliseconds: float) -> float:
    """Return 1e12 operations per second of a prefill: the decoder's layers, and ``lm_head`` for the last position."""
    operations = prefill(spec, uniform(spec, tokens)).flops + 2 * spec.width * spec.vocabulary
    return operations / milliseconds / 1e9


def decode_giga_bytes(spec: DecoderSpec, weight_bytes: float, cached: int, milliseconds: float) -> float:
    """Return 1e9 bytes per second of a decode step: every weight and the key/value cache (16 bits) are read once."""
    cache = kv_bytes(uniform(spec, cached), kv_heads=spec.kv_heads, head_dim=spec.head_dim)
    return (weight_bytes + cache) / milliseconds / 1e6


def read_per_step(spec: DecoderSpec, bytes_per_weight: float) -> float:
    """Return the bytes of the weights that a step reads: the layers and ``lm_head``, one row of the embeddings."""
    queries, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    layer = 2 * spec.width * (queries + keys) + 3 * spec.width * spec.mlp_width
    return bytes_per_weight * (spec.layers * layer + spec.width * spec.vocabulary)


def fraction(value: float | None, peak: float | None) -> float | None:
    """Return which part of a peak a value is, None where the peak isn't known."""
    return value / peak if peak else None
