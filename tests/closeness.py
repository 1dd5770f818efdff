"""Compare what a graph says after a cast or a lowering with what it said before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lmmprune.compiler.verify.parity import COSINE
from lmmprune.stored import Array


@dataclass(frozen=True, kw_only=True)
class Closeness:
    """How close one output is to what it should be.

    Attributes:
        output: Its name.
        relative: Largest difference, of the largest expected value.
        cosine: Cosine of the two as vectors; 1 for integers that are equal, else 0.
    """

    output: str
    relative: float
    cosine: float

    def holds(self, precision: str) -> bool:
        """Say whether the cosine is that of a precision (``parity.COSINE``: 0.999 for float16)."""
        return self.cosine >= COSINE[precision]


def compare_outputs(expected: Mapping[str, Array], found: Mapping[str, Array]) -> list[Closeness]:
    """Compare every output by name, in float64.

    Args:
        expected: Outputs of the float32 graph.
        found: Outputs of the other one on the same inputs; has the same names and shapes.

    Raises:
        ValueError: An output is missing or has another shape.
    """
    result = []
    for name, wanted in expected.items():
        if name not in found or found[name].shape != wanted.shape:
            shape = found[name].shape if name in found else "nothing"
            raise ValueError(f"output '{name}': expected shape {wanted.shape}, found {shape}")
        if not np.issubdtype(wanted.dtype, np.floating):
            equal = np.array_equal(wanted, found[name])
            result.append(Closeness(output=name, relative=0.0 if equal else 1.0, cosine=1.0 if equal else 0.0))
            continue
        a, b = (np.asarray(array, np.float64).ravel() for array in (wanted, found[name]))
        largest, lengths = np.abs(a).max(initial=1e-30), np.linalg.norm(a) * np.linalg.norm(b)
        result.append(
            Closeness(
                output=name,
                relative=float(np.abs(a - b).max(initial=0.0) / largest),
                # NaN anywhere gives NaN, which holds for no precision.
                cosine=float(a @ b / lengths) if lengths != 0 else float(np.array_equal(a, b)),
            )
        )
    return result
