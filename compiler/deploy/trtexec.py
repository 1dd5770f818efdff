"""Command lines of NVIDIA's ``trtexec``: build the same engines, and time them, on a machine without lmmprune."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from lmmprune.compiler.build.profiles import Profile, Shape
from lmmprune.compiler.targets.targets import Target


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """What one generation of the program understands.

    Attributes:
        program: Name of the executable.
        build: Flags of every build.
        time: Flags of every measurement, so that all generations measure the same: CUDA graphs, busy waiting, no
            copies between host and device.
        timing_cache: Whether ``--timingCacheFile`` helps.
        decomposable: Flag that lets attention without a fused kernel fall apart; None where there is no such layer.
    """

    program: str
    build: tuple[str, ...]
    time: tuple[str, ...]
    timing_cache: bool
    decomposable: str | None


# Source: the help texts in samples/common/sampleOptions.cpp of NVIDIA/TensorRT (doc). In 10.x, --stronglyTyped,
# --useCudaGraph, --useSpinWait and --noDataTransfers are off unless given; in 11.x (commit d588328) they are the
# default and each flag is a deprecated no-op, so it is left out. --decomposableAttentions came with IAttention (10.14)
# and takes names with one wildcard. All other flags used here are the same in 10.3, 10.13, 10.16 and 11.
_TENSORRT_10 = Dialect(
    program="trtexec",
    build=("--stronglyTyped",),
    time=("--useCudaGraph", "--useSpinWait", "--noDataTransfers"),
    timing_cache=True,
    decomposable=None,
)
_TENSORRT_10_14 = Dialect(
    program="trtexec",
    build=_TENSORRT_10.build,
    time=_TENSORRT_10.time,
    timing_cache=True,
    decomposable="--decomposableAttentions=*",
)
_TENSORRT_11 = Dialect(
    program="trtexec", build=(), time=(), timing_cache=True, decomposable="--decomposableAttentions=*"
)
# Source: TensorRT-RTX's guide, "Performance Benchmarking" (defaults) and "Timing Cache Migration" (no use, and it asks
# for a GPU at build time).
_RTX = Dialect(program="tensorrt_rtx", build=(), time=(), timing_cache=False, decomposable="--decomposableAttentions=*")
DIALECTS: Mapping[str, Dialect] = {
    "tensorrt-10.3": _TENSORRT_10,
    "tensorrt-10.13": _TENSORRT_10,
    "tensorrt-10.16": _TENSORRT_10_14,
    "tensorrt-11": _TENSORRT_11,
    "tensorrt-rtx": _RTX,
}


def build_command(
    target: Target, graph: PurePath, engine: PurePath, profiles: Sequence[Profile], *, options: Sequence[str] = ()
) -> list[str]:
    """Return the words of the command that builds one engine and doesn't run it.

    Args:
        target: A target whose engines are compiled.
        graph: The ONNX file.
        engine: Where the engine shall go.
        profiles: The engine's optimisation profiles.
        options: Further flags.
    """
    dialect = DIALECTS[target.name]
    words = [dialect.program, f"--onnx={graph}", f"--saveEngine={engine}", "--skipInference", *dialect.build, *options]
    for index, profile in enumerate(profiles):
        words.append(f"--profile={index}")
        for flag, position in (("min", 0), ("opt", 1), ("max", 2)):
            words.append(f"--{flag}Shapes={_spec({name: s[position] for name, s in profile.shapes.items()})}")
    return words


def time_command(
    target: Target,
    engine: PurePath,
    *,
    profile: int,
    shapes: Mapping[str, Shape],
    inputs: Mapping[str, PurePath],
) -> list[str]:
    """Return the words of the command that times one engine; how long it runs is left to the caller.

    Args:
        target: The target that it was built for.
        engine: The engine.
        profile: Number of the optimisation profile.
        shapes: Sizes of the dynamic inputs.
        inputs: Input -> file with its values in its own type; the others are filled with random numbers.
    """
    dialect = DIALECTS[target.name]
    words = [dialect.program, f"--loadEngine={engine}", f"--useProfile={profile}", *dialect.time]
    if shapes:
        words.append(f"--shapes={_spec(shapes)}")
    if inputs:
        words.append("--loadInputs=" + ",".join(f"{name}:{path}" for name, path in inputs.items()))
    return words


def find_program(target: Target) -> str:
    """Return the line of a shell script that puts the program's path into ``$trtexec``; JetPack keeps it off PATH."""
    program = DIALECTS[target.name].program
    return f"trtexec=$(command -v {program} || echo /usr/src/tensorrt/bin/{program})"


def banner(version: str) -> int:
    """Return a release as the program's banner writes it: ``10.16`` is 101600 (``[TensorRT v101600]``)."""
    parts = [*map(int, version.split(".")), 0, 0]
    return parts[0] * 10000 + parts[1] * 100 + parts[2]


def _spec(shapes: Mapping[str, Shape]) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())
