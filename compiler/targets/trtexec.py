"""The dialects of NVIDIA's ``trtexec``, as data: what each generation of the program is called and understands."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """What one generation of the program understands.

    Attributes:
        program: Name of the executable.
        build: Flags of every build.
        time: Flags of every measurement, so that all generations measure the same: CUDA graphs, busy waiting, no
            copies between host and device.
        decomposable: Flag that lets attention without a fused kernel fall apart; None where there is no such layer.
    """

    program: str
    build: tuple[str, ...] = ()
    time: tuple[str, ...] = ()
    decomposable: str | None = None


# Source: the help texts in samples/common/sampleOptions.cpp of NVIDIA/TensorRT (doc). In 10.x, --stronglyTyped,
# --useCudaGraph, --useSpinWait and --noDataTransfers are off unless given; in 11.x (commit d588328) they are the
# default and each flag is a deprecated no-op, so it is left out. --decomposableAttentions came with IAttention (10.14)
# and takes names with one wildcard. All other flags used here are the same in 10.3, 10.13, 10.16 and 11.
_APART = "--decomposableAttentions=*"
_BUILD, _TIME = ("--stronglyTyped",), ("--useCudaGraph", "--useSpinWait", "--noDataTransfers")
TENSORRT_10 = Dialect(program="trtexec", build=_BUILD, time=_TIME)
TENSORRT_10_14 = Dialect(program="trtexec", build=_BUILD, time=_TIME, decomposable=_APART)
TENSORRT_11 = Dialect(program="trtexec", decomposable=_APART)
# Source: TensorRT-RTX's guide, "Performance Benchmarking" (defaults).
RTX = Dialect(program="tensorrt_rtx", decomposable=_APART)
