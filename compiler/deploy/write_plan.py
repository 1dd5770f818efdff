"""Write a plan: a folder that builds and times a bundle's engines with ``trtexec``, on a machine without Python."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

from lmmprune.compiler.build import trtexec
from lmmprune.compiler.build.options import BuildOptions
from lmmprune.compiler.bundle import engines
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.bundle.replace import PLAN as PLAN_FOLDER
from lmmprune.compiler.bundle.replace import check_apart
from lmmprune.compiler.bundle.write_folder import place, write_folder, write_sums
from lmmprune.compiler.deploy.stages import QUESTION, BuildStep
from lmmprune.compiler.deploy.variant import Variant, names_of, variant_of
from lmmprune.compiler.targets.target import Target
from lmmprune.compiler.targets.targets import resolve
from lmmprune.errors import InputError
from lmmprune.names import INPUT_IDS
from lmmprune.version import __version__

FORMAT = 1
SCRIPT, POWER, STEPS, PLAN, README = "measure.sh", "power.sh", "steps.tsv", "plan.json", "README.md"
_TIMING_CACHE = "engines/timing.cache"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was written: the target, the board's architecture (None: any), the variants, and what a shell would take."""

    folder: Path
    target: Target
    arch: str | None
    variants: tuple[Variant, ...]
    commands: tuple[str, ...]

    @property
    def steps(self) -> int:
        """Engines that are built, and stages that are timed."""
        return sum(len(variant.spec.profiles) + len(variant.stages) for variant in self.variants)


def write_plan(
    bundles: Sequence[Path | str],
    target: str,
    output: Path,
    *,
    question: str = QUESTION,
    max_prompt: int | None = None,
    options: BuildOptions | None = None,
    force: bool = False,
) -> Plan:
    """Write the plan of one or several bundles; the first is what the others are compared with.

    Args:
        bundles: Directories of bundles that suit the target.
        target: Name or alias of a target whose engines are compiled.
        output: The folder to be.
        question: What the prefill is timed with.
        max_prompt: Longest prompt in tokens (None: as many as the model has positions).
        options: What to ask of the builder.
        force: Replace a plan that is there.

    Raises:
        BundleError: A bundle is missing or broken.
        InputError: The folder can't be written, two bundles have the same name, the question doesn't fit, the timing
            cache lies outside of the folder, or the engines shall have no weights.
        TargetError: A bundle doesn't suit the target, or an option is none of its builder's.
    """
    chosen, options = resolve(target), options or BuildOptions()
    options.check(chosen, gpu=True)  # there will be one where the plan runs
    if options.strip_weights:
        raise InputError(
            "--strip-weights with --plan-only: a plan times what it builds, which an engine without weights can't be"
        )
    _check_moves(options.timing_cache)
    variants = tuple(
        variant_of(name, Bundle.open(path), chosen, question, max_prompt, options)
        for name, path in names_of(bundles).items()
    )
    for path in bundles:
        check_apart(output, Path(path))
    with write_folder(Path(output), PLAN_FOLDER, force=force) as folder:
        commands, known = fill_plan(folder, chosen, variants, arch=chosen.boards.get(target))
        write_sums(folder, known=known)
    return Plan(
        folder=Path(output), target=chosen, arch=chosen.boards.get(target), variants=variants, commands=commands
    )


def fill_plan(
    folder: Path,
    target: Target,
    variants: Sequence[Variant],
    *,
    arch: str | None,
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Put graphs, inputs, script, steps and description into a folder.

    Returns:
        The commands as a shell would take them, and the checksums of the bundles' files by their names in the folder.
    """
    known = {}
    for variant in variants:
        for name in _graph_files(variant.bundle):
            place(variant.bundle.file(name), folder / variant.name / name)
            known[f"{variant.name}/{name}"] = variant.bundle.manifest.files[name].sha256
        for stage in variant.stages:
            for tensor, array in stage.inputs.items():
                path = folder / _input_file(variant.name, stage, tensor)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(array.tobytes())
    steps = [*_builds(target, variants), *_times(target, variants)]
    dialect = trtexec.dialect_of(target)
    least, below = target.version or ("0", "99")
    # A bundle in float32 has attention without a fused kernel: the script tries again with this flag.
    head = ["need", dialect.program, str(trtexec.banner(least)), str(trtexec.banner(below))]
    head += [dialect.decomposable] if dialect.decomposable and target.takes("Attention") else []
    lines = ["\t".join(words) for words in [head, *steps]]
    # A shell reads these: lines end as they do there, wherever the plan is written.
    (folder / STEPS).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    engines_at = dict.fromkeys(str(PurePosixPath(words[3]).parent) for words in steps)
    commands = (
        trtexec.find_program(target),
        shlex.join(["mkdir", "-p", *engines_at]),
        *(f'"$trtexec" {shlex.join(words[4:])}' for words in steps),
    )
    plan = {
        "format": FORMAT,
        "lmmprune": __version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "target": target.name,
        "arch": arch,
        "variants": [_described(variant) for variant in variants],
        "commands": commands,
    }
    (folder / PLAN).write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")
    for script in (SCRIPT, POWER):
        text = resources.files("lmmprune.compiler.deploy").joinpath(script).read_text(encoding="utf-8")
        (folder / script).write_text(text, encoding="utf-8", newline="\n")
        (folder / script).chmod(0o755)
    (folder / README).write_text(_readme(target, arch, variants, commands), encoding="utf-8")
    return commands, known


def engine_file(variant: str, component: str) -> PurePosixPath:
    """Return where the script leaves an engine, below the folder."""
    return PurePosixPath("engines", variant, f"{component}.engine")


def _check_moves(timing_cache: Path | None) -> None:
    if timing_cache is not None and (timing_cache.is_absolute() or {"..", "~"} & {*timing_cache.parts}):
        raise InputError(
            f"--timing-cache '{timing_cache}' is a place on this machine, the plan runs on another: leave it out (the "
            f"plan keeps '{_TIMING_CACHE}' in its folder), or give a path that is relative to the folder"
        )


def _graph_files(bundle: Bundle) -> list[str]:
    return sorted({name for component in bundle.manifest.graphs for name in engines.sources(bundle, component)})


def _input_file(variant: str, stage: BuildStep, tensor: str) -> PurePosixPath:
    return PurePosixPath(variant, "inputs", f"{stage.name}.{tensor}.bin")


def _builds(target: Target, variants: Sequence[Variant]) -> Iterator[list[str]]:
    for variant in variants:
        more = [*variant.spec.flags()]
        if target.timing_cache:
            more.append(f"--timingCacheFile={variant.spec.options.timing_cache or _TIMING_CACHE}")
        for component, graph in variant.bundle.manifest.graphs.items():
            engine = engine_file(variant.name, component)
            source = PurePosixPath(variant.name, graph.file)
            words = trtexec.build_command(target, source, engine, variant.spec.profiles[component], options=more)
            yield ["build", variant.name, component, str(engine), *words[1:]]


def _times(target: Target, variants: Sequence[Variant]) -> Iterator[list[str]]:
    for variant in variants:
        for stage in variant.stages:
            engine = engine_file(variant.name, stage.component)
            inputs = {tensor: _input_file(variant.name, stage, tensor) for tensor in stage.inputs}
            words = trtexec.time_command(target, engine, profile=stage.profile, shapes=stage.shapes, inputs=inputs)
            yield ["time", variant.name, stage.name, str(engine), *words[1:]]


def _described(variant: Variant) -> dict[str, Any]:
    manifest = variant.bundle.manifest
    return {
        "name": variant.name,
        "model": manifest.model,
        "method": manifest.method,
        "tokens_before": manifest.tokens_before,
        "image_tokens": manifest.average_tokens,
        "dtype": manifest.precision.dtype,
        "int8": manifest.precision.int8,
        "int4": manifest.precision.group,
        "weights_bytes": variant.bundle.bytes,
        "prompt_tokens": next(s.inputs[INPUT_IDS].shape[1] for s in variant.stages if s.name == "prefill"),
        "stages": [stage.name for stage in variant.stages],
        "tiles": manifest.most_tiles,
    }


def _readme(target: Target, arch: str | None, variants: Sequence[Variant], commands: Sequence[str]) -> str:
    names = " and ".join(f"`{variant.name}`" for variant in variants)
    where = f"{target.summary}{f', {arch}' if arch else ''}"
    return f"""# Build and time {names}

For {where}. Needed there: `sh`, `sha256sum`, and NVIDIA's `{trtexec.dialect_of(target).program}`; no Python.

    sudo sh {POWER}           # on a Jetson: the mode of full power by its name, clocks at their top
    sh {SCRIPT}              # checks this folder, builds every engine, times them in 5 rounds, writes result.json
    sh {SCRIPT} -h           # rounds, seconds, where the result goes

Take `result.json` back to any machine with lmmprune:

    lmmprune bench --import result.json

Engines stay in `engines/`, what the program said in `logs/`, the power mode, clocks and
temperatures before and after in `result.json`. The commands one by one, from this folder, in one shell:

""" + "".join(f"    {command}\n" for command in commands)
