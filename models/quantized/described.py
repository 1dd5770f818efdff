"""What a checkpoint says of its quantization, or why weights of that kind aren't read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from lmmprune.errors import ModelError

SUPPORTED = (
    "AWQ (gemm, 4 bits), GPTQ (4 or 8 bits), compressed-tensors (pack-quantized of 4 or 8 bits, int-quantized of 8)"
)
"""What is read, in words."""


@dataclass(frozen=True, kw_only=True)
class Described:
    """How all quantized weights of a checkpoint are stored.

    Attributes:
        method: ``awq``, ``gptq`` or ``compressed-tensors``.
        title: What people call it.
        form: Name in ``collect.FORMS``.
        bits: Of an integer.
        group: Inputs that share a scale; None: all of an output's.
        remark: What isn't carried over; None: all is.
    """

    method: str
    title: str
    form: str
    bits: int
    group: int | None
    remark: str | None = None

    def __str__(self) -> str:
        """Say it in a few words."""
        share = "one scale for an output" if self.group is None else f"groups of {self.group}"
        return f"{self.title}, {self.bits} bits, {share}"


def describe(directory: Path, said: Mapping[str, Any], method: str) -> Described:
    """Read the ``quantization_config`` of one of the three methods.

    Args:
        directory: The checkpoint, for errors.
        said: What config.json has.
        method: ``awq``, ``gptq`` or ``compressed-tensors``.

    Raises:
        ModelError: It is of a kind that isn't read.
    """
    return {"awq": _awq, "gptq": _gptq, "compressed-tensors": _compressed}[method](directory, said)


def _awq(directory: Path, said: Mapping[str, Any]) -> Described:
    version, bits = str(said.get("version", "gemm")).lower(), said.get("bits", said.get("w_bit", 4))
    if version != "gemm":
        _refuse(directory, "AWQ", "version", version, "'gemm'")
    if bits != 4:
        _refuse(directory, "AWQ", "bits", bits, "4")
    group = _group(directory, "AWQ", said.get("group_size", said.get("q_group_size", 128)))
    return Described(method="awq", title="AWQ", form="awq", bits=4, group=group)


def _gptq(directory: Path, said: Mapping[str, Any]) -> Described:
    form, bits = str(said.get("checkpoint_format") or "gptq"), said.get("bits")
    if form not in ("gptq", "gptq_v2"):
        _refuse(directory, "GPTQ", "checkpoint_format", form, "'gptq' or 'gptq_v2'")
    if bits not in (4, 8):
        _refuse(directory, "GPTQ", "bits", bits, "4 or 8")
    if said.get("dynamic"):
        _refuse(directory, "GPTQ", "dynamic", "other settings for some modules", "the same for all")
    group = _group(directory, "GPTQ", said.get("group_size", -1))
    return Described(method="gptq", title="GPTQ", form=form, bits=int(bits or 0), group=group)


def _compressed(directory: Path, said: Mapping[str, Any]) -> Described:
    title = "compressed-tensors"
    groups = said.get("config_groups")
    if not isinstance(groups, Mapping) or len(groups) != 1:
        found = len(groups) if isinstance(groups, Mapping) else 0
        _refuse(directory, title, "config_groups", f"{found} schemes", "one scheme for all weights")
    (scheme,) = groups.values()
    form = str((scheme.get("format") or said.get("format")) if isinstance(scheme, Mapping) else scheme)
    if form not in ("pack-quantized", "int-quantized"):
        _refuse(directory, title, "format", form, "'pack-quantized' or 'int-quantized'")
    if said.get("transform_config"):
        _refuse(directory, title, "transform_config", "rotations of activations", "none")
    if ((said.get("sparsity_config") or {}).get("format") or "dense") != "dense":
        _refuse(directory, title, "sparsity_config.format", said["sparsity_config"]["format"], "'dense'")
    weights = scheme.get("weights") or {}
    bits, strategy = weights.get("num_bits"), weights.get("strategy")
    if weights.get("type", "int") != "int" or bits not in ((4, 8) if form == "pack-quantized" else (8,)):
        kind = f"{bits} bits of {weights.get('type', 'int')}"
        _refuse(
            directory, title, "weights", kind, "4 or 8 bits of int" if form == "pack-quantized" else "8 bits of int"
        )
    if strategy not in ("group", "channel", "tensor"):
        _refuse(directory, title, "weights.strategy", strategy, "'group', 'channel' or 'tensor'")
    group = _group(directory, title, weights.get("group_size")) if strategy == "group" else None
    left = [
        f"activations of {acts.get('num_bits')} bits" for acts in [scheme.get("input_activations")] if acts is not None
    ] + ["a cache of fewer bits"] * bool(said.get("kv_cache_scheme"))
    remark = (
        f"config.json asks for {' and '.join(left)} beside the weights' integers: these alone are carried over,"
        " activations are the target's"
        if left
        else None
    )
    return Described(
        method="compressed-tensors", title=title, form=form, bits=int(bits or 0), group=group, remark=remark
    )


def _group(directory: Path, title: str, size: object) -> int | None:
    """Return a group's size, None for -1: all inputs."""
    if size in (-1, None):
        return None
    if type(size) is not int or size < 1:
        _refuse(directory, title, "group_size", size, "-1 or a number of inputs")
    return size


def _refuse(directory: Path, title: str, key: str, found: object, expected: str) -> NoReturn:
    raise ModelError(
        f"'{directory}' is quantized already, by {title}, with {key} {found!r}: expected {expected}; what is read is"
        f" {SUPPORTED}: give such a one, or the floating-point checkpoint with --int4 or --int8"
    )
