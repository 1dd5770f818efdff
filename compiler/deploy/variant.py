"""One bundle of a plan: its name there, what its engines are built with, what is timed of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmmprune.compiler.build.build import check_suits
from lmmprune.compiler.build.engine_spec import EngineSpec, engine_spec
from lmmprune.compiler.build.options import BuildOptions
from lmmprune.compiler.build.read_graph import check_graphs
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.deploy.stages import BuildStep, stages_of
from lmmprune.compiler.targets.target import Target
from lmmprune.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One bundle of a plan, under the name that its files and results have there."""

    name: str
    bundle: Bundle
    spec: EngineSpec
    stages: tuple[BuildStep, ...]


def variant_of(
    name: str, bundle: Bundle, target: Target, question: str, max_prompt: int | None, options: BuildOptions
) -> Variant:
    """Return a bundle with the stages and what its engines are built with for a target.

    Raises:
        BundleError: A graph is damaged, or isn't what the manifest says.
        InputError: The question doesn't fit.
        TargetError: The bundle doesn't suit the target.
    """
    check_suits(bundle, target)
    check_graphs(bundle)
    spec = engine_spec(bundle.manifest, target, max_prompt=max_prompt, options=options)
    return Variant(name=name, bundle=bundle, spec=spec, stages=stages_of(bundle, spec.profiles, question))


def names_of(bundles: Sequence[Path | str]) -> dict[str, Path]:
    """Return name in the plan -> bundle.

    Raises:
        InputError: Two would have the same name.
    """
    found: dict[str, Path] = {}
    for path in map(Path, bundles):
        # The script splits nothing but tabs, yet people type these names.
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.resolve().name).strip("-.") or "bundle"
        if name in found:
            raise InputError(f"'{found[name]}' and '{path}' would both be called '{name}': rename one")
        found[name] = path
    return found
