"""What an engine is built with, in one place: shapes and options of ``build``, of its plans and of a board's folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lmmprune.compiler.build.options import BuildOptions
from lmmprune.compiler.build.profiles import Profile, decoder_profiles, selection_profiles, vision_profiles
from lmmprune.compiler.bundle.interface import SELECTION
from lmmprune.compiler.bundle.manifest import Manifest
from lmmprune.compiler.bundle.views import seen_by
from lmmprune.compiler.targets.target import Target

WORKSPACE = 2**30
"""Scratch memory in bytes that a kernel may take where a board's processor and GPU share the memory."""


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """The optimisation profiles of each component (none where every shape is static), and what the builder is asked."""

    profiles: Mapping[str, list[Profile]]
    options: BuildOptions

    def flags(self) -> Iterator[str]:
        """Yield the flags of ``trtexec`` that ask for what the builder's Python API is asked."""
        # The inspector names types and kernels of an engine's layers only if it was built with details.
        yield "--profilingVerbosity=detailed"
        yield from self.options.flags()


def engine_spec(
    manifest: Manifest,
    target: Target,
    *,
    components: Sequence[str] | None = None,
    max_prompt: int | None = None,
    options: BuildOptions | None = None,
) -> EngineSpec:
    """Return what the engines of a bundle are built with, whoever builds them.

    Args:
        manifest: The bundle's.
        target: A target whose engines are compiled.
        components: Which graphs; None: all of them.
        max_prompt: Longest prompt in tokens (None: as many as the model has positions).
        options: What the user asked of the builder; without a limit of its own, scratch memory is limited on the
            targets of boards, by the target and not by the machine, so that every way to an engine takes the same.

    Raises:
        InputError: ``max_prompt`` doesn't suit the model.
        TargetError: A dimension has an unknown meaning.
    """
    asked = options or BuildOptions()
    if asked.workspace is None and target.boards:
        asked = dataclasses.replace(asked, workspace=WORKSPACE)
    profiles = {name: _profiles(manifest, target, name, max_prompt) for name in components or manifest.graphs}
    return EngineSpec(profiles=profiles, options=asked)


def _profiles(manifest: Manifest, target: Target, component: str, max_prompt: int | None) -> list[Profile]:
    if component == "decoder":
        return decoder_profiles(manifest, target, max_prompt)
    if component.startswith(SELECTION):
        return selection_profiles(seen_by(manifest, component), max_prompt)
    return vision_profiles(seen_by(manifest, component))
