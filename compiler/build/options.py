"""What a user may ask of the builder beside the graph: as options of its Python API, and as flags of ``trtexec``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmmprune.compiler.targets.target import Target
from lmmprune.errors import TargetError


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How an engine is built.

    Attributes:
        refit: Weights can be exchanged later without building again.
        strip_weights: Weights stay out of the engine's file and are put in from the ONNX file before it runs.
        version_compatible: Newer releases of the same major version run the engine too.
        workspace: Most scratch memory in bytes that a kernel may take, when building and when running; None: all.
        timing_cache: File that keeps what the builder measured, so that the next build is faster; made if missing.
        verbose: Pass on the builder's own messages, down to its information.
    """

    refit: bool = False
    strip_weights: bool = False
    version_compatible: bool = False
    workspace: int | None = None
    timing_cache: Path | None = None
    verbose: bool = False

    def check(self, target: Target, *, gpu: bool) -> None:
        """Refuse what the target's builder can't do here.

        Args:
            target: A target whose engines are compiled.
            gpu: Whether this machine has the GPU.

        Raises:
            TargetError: It can't.
        """
        if (self.refit or self.strip_weights) and target.weightless_needs_gpu and not gpu:
            which = "--strip-weights" if self.strip_weights else "--refit"
            raise TargetError(
                f"{which} for '{target.name}' needs an RTX GPU in the machine that builds, no NVIDIA GPU was found: "
                "build there, or leave the option out"
            )
        if self.timing_cache is not None and not target.timing_cache:
            raise TargetError(f"'{target.name}' has no timing cache: leave out --timing-cache")

    def recorded(self) -> dict[str, bool | int]:
        """Return the options that make another engine, where they aren't the default."""
        given = {name: getattr(self, name) for name in ("refit", "strip_weights", "version_compatible", "workspace")}
        return {name: value for name, value in given.items() if value}

    def flags(self) -> Iterator[str]:
        """Yield the flags of ``trtexec`` that ask for the same (the timing cache has a place of its own there)."""
        wanted = {
            "--refit": self.refit,
            "--stripWeights": self.strip_weights,
            "--versionCompatible": self.version_compatible,
            "--verbose": self.verbose,
        }
        yield from (flag for flag, given in wanted.items() if given)
        if self.workspace is not None:
            yield f"--memPoolSize=workspace:{self.workspace / 2**20:g}M"

    def apply(self, target: Target, trt: Any, config: Any) -> None:
        """Set the options in a builder's configuration.

        Args:
            target: Whose builder it is.
            trt: ``tensorrt`` or ``tensorrt_rtx``.
            config: Its ``IBuilderConfig``.
        """
        if self.refit:
            config.set_flag(trt.BuilderFlag.REFIT)
        if self.strip_weights:
            config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        if self.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
            if not target.lean_runtime:
                # The engine takes the runtime of whoever runs it.
                config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
        if self.workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, self.workspace)
