"""``lmmprune build``: compile a bundle's graphs into engines for a target."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmmprune.compiler.bundle import seal
from lmmprune.compiler.cli.build_options import build_options
from lmmprune.compiler.cli.command import Command, argument
from lmmprune.compiler.cli.given import refuse_ignored
from lmmprune.compiler.cli.options import check_triton, unsealed_option
from lmmprune.compiler.cli.output import note, print_json, show
from lmmprune.compiler.cli.progress import phases
from lmmprune.compiler.cli.table import Column, table
from lmmprune.units import human_bytes

if TYPE_CHECKING:
    from lmmprune.compiler.build.options import BuildOptions
    from lmmprune.compiler.bundle.engines import EngineRecord


@click.command("build", cls=Command, example="lmmprune build out/ --target tensorrt-rtx --arch sm89")
@argument("directories", metavar="BUNDLE...", nargs=-1, required=True, type=click.Path())
@unsealed_option
@build_options
def command(
    directories: tuple[str, ...],
    target: str | None,
    arch: str | None,
    components: tuple[str, ...],
    max_prompt: int | None,
    force: bool,
    triton: Path | None,
    triton_backend: str,
    refit: bool,
    strip_weights: bool,
    version_compatible: bool,
    workspace: int | None,
    timing_cache: Path | None,
    verbose: bool,
    plan_only: bool,
    output: Path | None,
    prompt: str | None,
    as_json: bool,
) -> None:
    """Compile the graphs of a bundle into engines.

    TensorRT-RTX engines are built on any machine, with --arch naming the GPU. TensorRT engines are built on the GPU
    that will run them; elsewhere the command says what to run there, and --plan-only writes a folder for a machine
    without Python. A plan may hold several bundles: the first one is what the others are compared with.
    With --triton, bundles of ONNX Runtime, which need no engines, are served too.
    """
    from lmmprune.compiler.build.options import BuildOptions
    from lmmprune.compiler.bundle.bundle import Bundle

    options = BuildOptions(
        refit=refit,
        strip_weights=strip_weights,
        version_compatible=version_compatible,
        workspace=workspace,
        timing_cache=timing_cache,
        verbose=verbose,
    )
    target = target or Bundle.open(directories[0]).manifest.target
    if seal.allowed() and (plan_only or triton):
        raise click.UsageError(
            f"--unsealed doesn't go with {'--plan-only' if plan_only else '--triton'}: what runs elsewhere reads sealed"
            " bundles alone"
        )
    if plan_only:
        for name, given in (("--arch", arch), ("--component", components), ("--triton", triton)):
            if given:
                raise click.UsageError(f"{name} doesn't go with --plan-only, which builds nothing here")
        refuse_ignored(False, "goes with --triton", "triton_backend")
        if output is None:
            raise click.UsageError("--plan-only needs a folder: -o FOLDER")
        _plan(directories, target, output, prompt, max_prompt, options, force, as_json)
        return
    if output is not None or prompt is not None:
        raise click.UsageError(f"{'-o' if output is not None else '--prompt'} goes with --plan-only")
    if len(directories) > 1:
        raise click.UsageError("several bundles go with --plan-only; build them one by one")
    _build(directories[0], target, arch, components, max_prompt, force, options, triton, triton_backend, as_json)


def _plan(
    directories: tuple[str, ...],
    target: str,
    output: Path,
    prompt: str | None,
    max_prompt: int | None,
    options: BuildOptions,
    force: bool,
    as_json: bool,
) -> None:
    from lmmprune.compiler.deploy.stages import QUESTION
    from lmmprune.compiler.deploy.write_plan import POWER, SCRIPT, write_plan

    question = prompt or QUESTION
    plan = write_plan(
        directories, target, output, question=question, max_prompt=max_prompt, options=options, force=force
    )
    if as_json:
        print_json(
            {
                "folder": str(plan.folder),
                "target": plan.target.name,
                "arch": plan.arch,
                "variants": [variant.name for variant in plan.variants],
                "commands": list(plan.commands),
            }
        )
        return
    show(
        f"{plan.folder}: {plan.steps} steps for {plan.target.summary}",
        f"copy it there and run: sh {plan.folder.name}/{SCRIPT}"
        + (f" (on a Jetson, before that: sudo sh {plan.folder.name}/{POWER})" if plan.target.boards else ""),
        "then here: lmmprune bench --import result.json",
    )


def _build(
    directory: str,
    target: str,
    arch: str | None,
    components: tuple[str, ...],
    max_prompt: int | None,
    force: bool,
    options: BuildOptions,
    triton: Path | None,
    triton_backend: str,
    as_json: bool,
) -> None:
    from lmmprune.compiler.build.build import build
    from lmmprune.compiler.bundle.bundle import Bundle
    from lmmprune.compiler.targets.targets import resolve
    from lmmprune.compiler.triton.repository import check_engines, write_repository

    bundle = Bundle.open(directory)
    manifest = bundle.manifest
    dtype, cache = manifest.precision.dtype, manifest.cache.capacity
    check_triton(bundle.path, triton, triton_backend, manifest.target, dtype, cache, force=force)
    if triton is not None:
        check_engines(bundle, target=target, arch=arch, components=components, max_prompt=max_prompt)
    refuse_ignored(
        triton is None or resolve(manifest.target).compiled,
        f"is for engines, and '{manifest.target}' has none: leave it out",
        *("refit", "strip_weights", "version_compatible", "workspace", "timing_cache"),
    )
    built = []
    if triton is None or resolve(manifest.target).compiled:
        with phases() as step:
            built = build(
                directory,
                target,
                arch=arch,
                components=components or None,
                max_prompt=max_prompt,
                force=force,
                options=options,
                say=note,
                step=step,
            )
    if triton is not None:
        found = built[0].record.arch if built else None
        repository = write_repository(bundle, triton, backend=triton_backend, arch=found, force=force)
    if as_json:
        rows = [{**dataclasses.asdict(one.record), "path": str(one.path), "fresh": one.fresh} for one in built]
        print_json({"engines": rows, "triton": None if triton is None else str(triton)})
        return
    if triton is not None:
        show(repository.line)
    if not built:
        return
    show(
        table(
            [
                Column(title="engine", path=True),
                Column(title="target", drop=2),
                Column(title="arch", drop=1),
                Column(title="type", drop=3),
                "size",
                "seconds",
                Column(title="builder", drop=4),
            ],
            [
                [
                    str(one.path),
                    one.record.target,
                    one.record.arch,
                    " ".join(filter(None, (one.record.dtype, one.record.int8))),
                    human_bytes(one.record.bytes),
                    f"{one.record.seconds:.1f}" if one.fresh else "kept",
                    f"{one.record.builder} {one.record.version}",
                ]
                for one in built
            ],
        )
    )
    show(*(line for one in built for line in _precision(one.record)))


def _precision(record: EngineRecord) -> Iterator[str]:
    """Yield what is known of the types that an engine computes in."""
    if record.float16_ratio is not None:
        by_type = " + ".join(f"{human_bytes(size)} {name}" for name, size in record.weights.items())
        yield (
            f"{record.component}: weights that went in: {by_type}; the engine is {record.float16_ratio:.2f} times "
            f"the {human_bytes(record.float16_bytes)} that they take in float16"
        )
    if record.layers is not None:
        counts = ", ".join(f"{count} {name}" for name, count in record.layers.items())
        yield f"{record.component}: layers with weights by type: {counts or 'the engine does not say'}"
