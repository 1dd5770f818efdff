"""What is known of a deployment target: the fields of the table, and what follows from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lmmprune.compiler.targets.trtexec import Dialect

Backend = Literal["onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"]
Causal = Literal["mask", "upper_left", "lower_right"]
Int8 = Literal["u8s8", "s8s8"]
Device = Literal["cpu", "cuda"]
Serving = Literal["onnxruntime", "tensorrt"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """One runtime at one version.

    Attributes:
        name: What ``--target`` takes.
        summary: One line for people.
        title: What people call the runtime.
        backend: The module that compiles or runs its graphs.
        device: Where its values lie.
        provider: ONNX Runtime's execution provider that runs it; None: another runtime does.
        opset: ONNX opset that graphs for this target are written in.
        max_opset: Newest opset that the target reads.
        native_ops: High-level operators that it takes as they are; others are lowered to primitives.
        causal: ``mask``: attention needs an explicit mask; else the alignment of ``Attention(is_causal=1)`` when the
            query is shorter than the keys. Decoding with a cache needs ``lower_right`` or an explicit mask.
        int8: ``u8s8``: asymmetric U8 activations, symmetric S8 weights per channel; ``s8s8``: both symmetric, zero
            point 0. A graph quantized for one scheme does not serve the other.
        int4_groups: How many inputs of a four-bit weight may share a scale, the usual number first.
        int4_whole: Whether they must divide a weight's inputs.
        nbits_level: Accuracy level that its graphs ask of ``MatMulNBits`` for four-bit weights; None: it takes
            ``DequantizeLinear`` with groups instead.
        group_query: Whether it takes causal attention and its cache as ``GroupQueryAttention``.
        dtype: Floating-point type that ``export`` takes unless told otherwise.
        dtypes: Floating-point types that it takes at all.
        parser: Version of onnx-tensorrt's parser that reads its graphs; None: ONNX Runtime does.
        architectures: GPU architectures that it can build engines for without that GPU; empty: only the one present.
        boards: Alias -> GPU architecture, for boards that carry exactly this version.
        aliases: Other names.
        extra: Extra of lmmprune that installs the runtime.
        requires: What the machine must have to run it.
        version: First and last release served (``major.minor``, the last exclusive), None where any will do.
        serving: Backend of Triton Inference Server that runs its graphs; None: there is none.
        trtexec: What the vendor's own program to build and time engines understands; None: there are no engines.
        decode_step: Lengths of a decode step's sequence (shortest, likely, longest) that an engine is built for.
        timing_cache: Whether the builder keeps what it measured, so that the next build is faster.
        weightless_needs_gpu: Whether engines without weights, or to be refitted, are built on the GPU only.
        lean_runtime: Whether an engine for several releases brings a runtime of its own.
        equal_head_widths: Whether an attention's values must be as wide as its keys.
        builder_measured: Whether what the builder takes of the host's memory was measured, so that a lack is refused.
    """

    name: str
    summary: str
    title: str
    backend: Backend
    device: Device
    opset: int
    max_opset: int
    native_ops: frozenset[str]
    causal: Causal
    int8: Int8
    int4_groups: tuple[int, ...]
    dtype: str
    dtypes: tuple[str, ...]
    extra: str
    requires: str
    int4_whole: bool = True
    nbits_level: int | None = None
    group_query: bool = False
    parser: tuple[int, int] | None = None
    architectures: tuple[str, ...] = ()
    boards: Mapping[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    version: tuple[str, str] | None = None
    provider: str | None = None
    serving: Serving | None = None
    trtexec: Dialect | None = None
    decode_step: tuple[int, int, int] = (1, 1, 1)
    timing_cache: bool = False
    weightless_needs_gpu: bool = False
    lean_runtime: bool = False
    equal_head_widths: bool = True
    builder_measured: bool = False

    @property
    def compiled(self) -> bool:
        """Whether ``build`` makes engines for it (the other runtimes read the graphs as they are)."""
        return self.backend in ("tensorrt", "tensorrt_rtx")

    @property
    def int8_schemes(self) -> tuple[str, ...]:
        """Names of the INT8 schemes that it takes, the usual one first."""
        # DynamicQuantizeLinear makes U8: TensorRT has neither the operator nor the type.
        return (self.int8, *(("u8s8-dynamic",) if self.int8 == "u8s8" else ()), "s8-weights")

    @property
    def names(self) -> tuple[str, ...]:
        """The name and every alias."""
        return (self.name, *self.aliases, *self.boards)

    def takes(self, op_type: str) -> bool:
        """Say whether the target takes a high-level operator without lowering."""
        return op_type in self.native_ops

    def as_dict(self) -> dict[str, Any]:
        """Return the row as plain JSON types."""
        row = dataclasses.asdict(self)
        row["native_ops"] = sorted(self.native_ops)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in row.items()}
