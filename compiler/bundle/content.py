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
class Int4Weights:
    """Weights of four bits.

    Attributes:
        group: Inputs that share a scale.
        method: How they were rounded: ``rtn``, to the nearest, or ``gptq``, on samples; ``checkpoint``: by others.
    """

    group: int
    method: str = "rtn"


@dataclass(frozen=True, kw_only=True)
class CarriedWeights:
    """Weights of the decoder that the checkpoint holds in integers, taken over as they are.

    Attributes:
        method: What quantized it: ``awq``, ``gptq`` or ``compressed-tensors``.
        bits: Of an integer, 4 or 8.
        group: Inputs that share a scale; None: all of an output's.
        zero_points: Whether zero isn't the middle everywhere.
        reordered: Whether inputs are brought into another order before a product.
    """

    method: str
    bits: int
    group: int | None
    zero_points: bool = False
    reordered: bool = False


@dataclass(frozen=True, kw_only=True)
class Precision:
    """What a bundle computes in.

    Attributes:
        dtype: Floating-point type.
        int8: Scheme of the graphs in INT8: both, or the vision tower where the decoder is INT4; None: none is.
        int4: How the decoder's weights are stored in four bits; None: they aren't.
        calibration: What was found when it was quantized, and on which data; None: nothing is.
        carried: Whose integers the decoder's are, if not ours.
    """

    dtype: str
    int8: str | None = None
    int4: Int4Weights | None = None
    calibration: Mapping[str, Any] | None = None
    carried: CarriedWeights | None = None

    @property
    def integers(self) -> str | None:
        """How it is quantized, in a word for people; None: not at all."""
        words = integers(self.int8, self.group)
        return words if self.carried is None else f"{words} by {self.carried.method}"

    @property
    def group(self) -> int | None:
        """Inputs that share a scale in the decoder's weights of four bits; None: there are none."""
        return None if self.int4 is None else self.int4.group

    @property
    def quantized(self) -> bool:
        """Whether anything is stored in integers."""
        return self.int8 is not None or self.int4 is not None

    @property
    def smaller(self) -> int | None:
        """Bits of the next form that an export can give it, 8 or 4; None: there is none."""
        if self.int4 is not None or self.carried is not None:
            return None
        return 8 if self.int8 is None else 4


def integers(int8: str | None, group: int | None) -> str | None:
    """Say how something is quantized, in a word for people; None: not at all.

    Args:
        int8: Scheme of graphs in INT8.
        group: Inputs that share a scale in weights of four bits.
    """
    four = None if group is None else f"int4 g{group}"
    eight = None if int8 is None else f"int8 {int8}{' vision' if four else ''}"
    return " + ".join(filter(None, (four, eight))) or None


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
