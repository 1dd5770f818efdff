"""What a pruning method is: a name, its paper's hyper-parameters, and the selection it writes into the graph."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from lmmprune.errors import InputError, suggestion
from lmmprune.passes.anchors import VisionAnchors
from lmmprune.passes.builder import Builder


@dataclass(frozen=True, kw_only=True)
class Method:
    """A training-free selection of visual tokens; the fields of a subclass are its hyper-parameters.

    Attributes:
        name: Name on the command line.
        site: Where tokens are cut.
        reference: The paper.
        exactness: What is exact and what is our reading of the paper.
        positions: Default position policy, ``contiguous`` or ``original``.
    """

    name: ClassVar[str]
    site: ClassVar[str] = "vision_output"
    reference: ClassVar[str]
    exactness: ClassVar[str]
    positions: ClassVar[str] = "contiguous"

    def select(self, b: Builder, anchors: VisionAnchors, keep: int) -> ir.Value:
        """Write the selection.

        Args:
            b: Tape.
            anchors: Where things are in the vision graph.
            keep: K, tokens to keep, 1 <= K < N.

        Returns:
            ``[B,K]`` int64 indices into the N patches, distinct, in any order.
        """
        raise NotImplementedError

    @property
    def parameters(self) -> dict[str, Any]:
        """The hyper-parameters as plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def with_options(cls, options: dict[str, str]) -> Method:
        """Make the method with some hyper-parameters changed, given as text.

        Raises:
            InputError: An unknown name, or a value of another type.
        """
        fields: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for name, text in options.items():
            if name not in fields:
                known = suggestion(name, fields) if fields else "; it has none"
                raise InputError(f"method '{cls.name}' has no option '{name}'{known}")
            try:
                values[name] = type(fields[name])(text)
            except ValueError as error:
                kind = type(fields[name]).__name__
                raise InputError(f"--set {name}={text}: expected a value of type {kind}") from error
        return cls(**values)


def keep_count(tokens: int, *, ratio: float | None = None, keep: int | None = None) -> int:
    """Return how many of N tokens stay: ``N - round(ratio * N)``, or ``keep`` itself.

    Args:
        tokens: N.
        ratio: Fraction removed, in ``[0, 1)``.
        keep: Count that stays.

    Raises:
        InputError: Ratio outside ``[0, 1)``, keep outside ``1..N``, both given, or nothing left.
    """
    if ratio is not None and keep is not None:
        raise InputError("--ratio and --keep exclude each other: give one")
    if keep is not None:
        if not 1 <= keep <= tokens:
            raise InputError(f"--keep {keep}: the model has {tokens} visual tokens; give 1..{tokens}")
        return keep
    ratio = 0.0 if ratio is None else ratio
    if not 0 <= ratio < 1:
        raise InputError(f"--ratio {ratio:g}: it is the fraction of visual tokens removed; give 0 <= ratio < 1")
    kept = tokens - round(ratio * tokens)
    if kept < 1:
        raise InputError(f"--ratio {ratio:g} leaves none of {tokens} visual tokens: give a smaller ratio, or --keep 1")
    return kept
