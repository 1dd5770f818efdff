"""Command lines of NVIDIA's ``trtexec`` that build the same engines on a machine without lmmprune."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from lmmprune.compiler.profiles import Profile, Shape
from lmmprune.compiler.targets import Target

# TensorRT-RTX ships its own program, with the same flags (doc: its installation guide).
_PROGRAMS = {"tensorrt": "trtexec", "tensorrt_rtx": "tensorrt_rtx"}


def build_command(target: Target, graph: Path, engine: Path, profiles: Sequence[Profile]) -> str:
    """Return the command that builds one engine.

    Args:
        target: A target whose engines are compiled.
        graph: The ONNX file.
        engine: Where the engine shall go.
        profiles: The engine's optimisation profiles.
    """
    words = [_PROGRAMS[target.backend], f"--onnx={graph}", f"--saveEngine={engine}", "--skipInference"]
    # TensorRT 10 types weakly unless told not to; 11 and TensorRT-RTX are strongly typed only (doc: migration guide).
    if target.version is not None and target.version[0].startswith("10."):
        words.append("--stronglyTyped")
    for index, profile in enumerate(profiles):
        words.append(f"--profile={index}")
        for flag, position in (("min", 0), ("opt", 1), ("max", 2)):
            shapes = ",".join(f"{name}:{_shape(ranges[position])}" for name, ranges in profile.shapes.items())
            words.append(f"--{flag}Shapes={shapes}")
    return shlex.join(words)


def _shape(shape: Shape) -> str:
    return "x".join(str(size) for size in shape)
