"""What a comparison found, as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.bundle.content import integers
from lmmprune.compiler.compare.fidelity import Fidelity, Measures
from lmmprune.compiler.measure.statistics import Estimate

WORST = 8
"""Examples of each bundle that are shown: those that are least faithful."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A bundle: what it is, how large, how fast.

    Attributes:
        name: Short and unique among the bundles.
        average_tokens: Visual tokens that a decoder layer hands on, on average.
        bytes: Size of the graphs with their weights on disk.
        times: By metric (``ttft_ms``, ``ms_per_token``), the median of the timed rounds; empty where nothing was timed.
        ratios: By metric, this bundle's time over the base's, within each round.
        accuracy: Share of right answers, whole, where they are known.
        accuracy_difference: The same less the base's.
        sha256: Of the bundle (``Bundle.sha256``).
        int4: Inputs that share a scale in weights of four bits; None: there are none.
    """

    name: str
    path: str
    method: str | None
    tokens_before: int
    average_tokens: float
    dtype: str
    int8: str | None
    target: str
    bytes: int
    times: Mapping[str, float]
    ratios: Mapping[str, Estimate]
    accuracy: Estimate | None = None
    accuracy_difference: Estimate | None = None
    sha256: str = ""
    int4: int | None = None

    @property
    def precision(self) -> str:
        """Its numbers, in words."""
        return integers(self.int8, self.int4) or self.dtype

    @classmethod
    def of(cls, name: str, bundle: Bundle, **measured: Any) -> Compared:
        """Describe a bundle."""
        manifest = bundle.manifest
        return cls(
            name=name,
            path=str(bundle.path),
            method=manifest.method,
            tokens_before=manifest.tokens_before,
            average_tokens=manifest.average_tokens,
            dtype=manifest.precision.dtype,
            int8=manifest.precision.int8,
            int4=manifest.precision.group,
            target=manifest.target,
            bytes=bundle.bytes,
            sha256=bundle.sha256,
            **measured,
        )


@dataclass(frozen=True, kw_only=True)
class Example:
    """One picture and prompt as another bundle saw it.

    Attributes:
        picture: Its name.
        said: What the other bundle answers.
        base_said: What the base answers.
        answers: Right ones, if they are known.
    """

    picture: str
    prompt: str
    kind: str | None
    base_said: str
    said: str
    fidelity: Fidelity
    answers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Other:
    """A bundle that was compared with the base.

    Attributes:
        bundle: What it is.
        measures: Over all examples.
        kinds: Over those of each kind.
        worst: The examples that are least faithful, the worst first.
        drawings: PNG files of what the bundle keeps for them; empty where none were asked for.
    """

    bundle: Compared
    measures: Measures
    kinds: Mapping[str, Measures]
    worst: tuple[Example, ...]
    drawings: tuple[bytes, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Bundles against a base, on pictures and prompts whose answers may be unknown."""

    base: Compared
    others: tuple[Other, ...]
    settings: Mapping[str, Any]
    machine: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return all of it but the drawings for JSON."""
        found = dataclasses.asdict(self)
        for other in found["others"]:
            del other["drawings"]
        return found
