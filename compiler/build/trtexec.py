"""Command lines of NVIDIA's ``trtexec``: build the same engines, and time them, on a machine without lmmprune."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath

from lmmprune.compiler.build.profiles import Profile, Shape
from lmmprune.compiler.targets.target import Target
from lmmprune.compiler.targets.trtexec import Dialect


def dialect_of(target: Target) -> Dialect:
    """Return what the program of a target, whose engines are compiled, understands."""
    assert target.trtexec is not None, f"{target.name} has no engines"
    return target.trtexec


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
    dialect = dialect_of(target)
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
    dialect = dialect_of(target)
    words = [dialect.program, f"--loadEngine={engine}", f"--useProfile={profile}", *dialect.time]
    if shapes:
        words.append(f"--shapes={_spec(shapes)}")
    if inputs:
        words.append("--loadInputs=" + ",".join(f"{name}:{path}" for name, path in inputs.items()))
    return words


def find_program(target: Target) -> str:
    """Return the line of a shell script that puts the program's path into ``$trtexec``; JetPack keeps it off PATH."""
    program = dialect_of(target).program
    return f"trtexec=$(command -v {program} || echo /usr/src/tensorrt/bin/{program})"


def banner(version: str) -> int:
    """Return a release as the program's banner writes it: ``10.16`` is 101600 (``[TensorRT v101600]``)."""
    parts = [*map(int, version.split(".")), 0, 0]
    return parts[0] * 10000 + parts[1] * 100 + parts[2]


def _spec(shapes: Mapping[str, Shape]) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())
