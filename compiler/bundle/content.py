"""What a manifest says, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lmmprune.compiler.bundle.interface import Interface

FORMAT = 4
"""Of a manifest: 4 is sealed; 3 is the same without a seal."""


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where weights came from, in words that mean the same on every machine.

    Attributes:
        kind: ``alias``, ``hub`` or ``directory``.
        name: The alias, the hub's ``owner/name``, or the directory's own name, without the path to it.
        revision: Commit of the hub's snapshot; None elsewhere.
        digest: SHA-256 over configuration and list of weights, which tells checkpoints apart; None without a
            checkpoint, and for a model that the package brings along.
    """

    kind: str
    name: str
    revision: str | None = None
    digest: str | None = None


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Floating-point type, and the INT8 scheme with the source of its calibration (None: not quantized)."""

    dtype: str
    int8: str | None = None
    calibration: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Loss:
    """How far the graphs, computed in float32, are from the unpruned model on a few pictures.

    Attributes:
        samples: Pictures with a question each.
        source: Whose pictures they are.
        kl: Divergence per token of the unpruned model's greedy answers, nats.
        same_first: Samples whose answer would begin with the same token.
    """

    samples: int
    source: str
    kl: float
    same_first: int


@dataclass(frozen=True, kw_only=True)
class File:
    """Size and checksum of one file of the bundle."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Content(Interface):
    """Everything that a run-time, a verifier or a reader needs to know of a bundle."""

    model: str
    family: str
    source: ModelSource
    weights: str  # "checkpoint" or "dummy"
    method: str | None
    parameters: Mapping[str, Any]
    precision: Precision
    target: str
    opset: int
    requested_tokens: int | None  # visual tokens per decoder layer that were asked for; None: a whole schedule was
    average_tokens: float  # visual tokens that a decoder layer hands on, on average
    flops: Mapping[str, Mapping[str, float]]  # {"vision": {"before": .., "after": ..}, "prefill": {..}}
    tools: Mapping[str, str]
    created: str
    adapter: ModelSource | None = None  # the LoRA adapter that was merged into the weights
    # transformers' generation settings that change greedy answers: {"applied": {name: value}, "ignored": {..}}
    generation: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    loss: Loss | None = None  # None: it wasn't measured
    files: Mapping[str, File] = field(default_factory=dict)
    format: int = FORMAT
