"""How a bundle is quantized: what the user asked for, and what was found and done, for the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lmmprune.compiler.data.calibration import CalibrationSet
from lmmprune.compiler.quantize.calibrators import get_calibrator
from lmmprune.compiler.targets.target import Target
from lmmprune.errors import InputError, suggestion
from lmmprune.passes.int8.int8 import SCHEMES

POLICIES = ("all", "auto")
PARTS = ("vision", "decoder")
"""The graphs that are quantized."""

WHOLE_BYTES = 2 * 2**30
"""Float32 weights up to which a decoder is calibrated as a whole; a larger one layer by layer."""


@dataclass(frozen=True, kw_only=True)
class Int8Plan:
    """What to quantize, and how.

    Attributes:
        scheme: Name in ``SCHEMES``.
        calibrator: Name in ``CALIBRATORS``, with its ``options``.
        smooth: Whether to search for smoothing factors (never without quantized activations).
        policy: ``all`` blocks, or ``auto``: those that hurt most stay in float until the error is within the budget.
        budget: Relative error of the outputs that ``auto`` allows.
        keep_float: Blocks that stay in float in any case, ``vision:NAME`` or ``decoder:NAME``.
        parts: Which of ``PARTS`` are quantized; the others are as they are.
    """

    scheme: str
    calibrator: str = "minmax"
    options: Mapping[str, str] = field(default_factory=dict)
    smooth: bool = True
    policy: str = "all"
    budget: float = 0.05
    keep_float: tuple[str, ...] = ()
    parts: tuple[str, ...] = PARTS

    def __post_init__(self) -> None:
        """Check what can be checked without the graphs.

        Raises:
            InputError: No such policy, or a budget or a block that can't be.
        """
        if self.policy not in POLICIES:
            raise InputError(f"--int8-policy {self.policy}: expected all or auto{suggestion(self.policy, POLICIES)}")
        get_calibrator(self.calibrator, dict(self.options))
        if SCHEMES[self.scheme].calibrated is False and self.policy == "auto":
            raise InputError(f"--int8-policy auto measures errors on calibration data, '{self.scheme}' uses none")
        if not 0 < self.budget < 1:
            raise InputError(f"--int8-budget {self.budget:g}: expected a relative error, 0 < budget < 1")
        for name in self.keep_float:
            if name.split(":")[0] not in self.parts or ":" not in name:
                raise InputError(
                    f"--keep-float {name}: expected {' or '.join(f'{part}:BLOCK' for part in self.parts)}"
                    " (see 'lmmprune inspect')"
                )

    def kept(self, part: str) -> frozenset[str]:
        """Return the blocks of one graph that the user wants in float."""
        return frozenset(name.split(":", 1)[1] for name in self.keep_float if name.startswith(f"{part}:"))

    def record(self, data: CalibrationSet, found: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the manifest says of a quantization: the data, the settings, and by graph what was found."""
        return {
            "source": data.source,
            "samples": len(data.samples),
            "method": self.calibrator,
            "policy": self.policy,
            **({"budget": self.budget} if self.policy == "auto" else {}),
            **found,
        }


def choose_scheme(target: Target, *, weights_only: bool, dynamic: bool, dtype: str) -> str:
    """Return the INT8 scheme for a target.

    Raises:
        InputError: The target doesn't take what was asked for.
    """
    scheme = "s8-weights" if weights_only else "u8s8-dynamic" if dynamic else target.int8
    if scheme not in target.int8_schemes:
        takes = "; ".join(f"{name}: {SCHEMES[name].summary}" for name in target.int8_schemes)
        raise InputError(f"target '{target.name}' takes no INT8 scheme '{scheme}', it takes {takes}")
    if dynamic and dtype != "float32":
        raise InputError(f"--int8-dynamic quantizes float32 activations, not {dtype}: leave out --dtype")
    return scheme
