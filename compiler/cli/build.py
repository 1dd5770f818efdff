"""``lmmprune build``: compile a bundle's graphs into engines for a target."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmmprune.compiler.cli.options import check_triton, triton_options
from lmmprune.compiler.cli.output import human_bytes, json_option, note, print_json, show, table

if TYPE_CHECKING:
    from lmmprune.compiler.engines import EngineRecord


@click.command("build")
@click.argument("directory", type=click.Path())
@click.option("--target", help="What the engines are for (see 'lmmprune targets'). Default: the bundle's own target.")
@click.option("--arch", help="GPU architecture such as sm89. Default: the GPU of this machine.")
@click.option(
    "--component", "components", multiple=True, help="vision, decoder, head_K; may be repeated. Default: all."
)
@click.option("--max-prompt", type=click.IntRange(min=1), help="Longest prompt in tokens. Default: the model's limit.")
@click.option("--force", is_flag=True, help="Build even what is up to date.")
@triton_options
@json_option
def command(
    directory: str,
    target: str | None,
    arch: str | None,
    components: tuple[str, ...],
    max_prompt: int | None,
    force: bool,
    triton: Path | None,
    triton_backend: str,
    as_json: bool,
) -> None:
    """Compile the graphs of the bundle DIRECTORY into engines.

    TensorRT-RTX engines are built on any machine, with --arch naming the GPU. TensorRT engines are built on the GPU
    that will run them; elsewhere the command says what to run there.
    With --triton, bundles of ONNX Runtime, which need no engines, are served too.
    """
    from lmmprune.compiler.build import build
    from lmmprune.compiler.bundle import Bundle
    from lmmprune.compiler.targets import resolve
    from lmmprune.compiler.triton.repository import check_engines, write_repository

    bundle = Bundle.open(directory)
    manifest = bundle.manifest
    check_triton(bundle.path, triton, triton_backend, manifest.target, manifest.precision.dtype)
    if triton is not None:
        check_engines(bundle, target=target, arch=arch, components=components, max_prompt=max_prompt)
    built = []
    if triton is None or resolve(manifest.target).compiled:
        built = build(
            directory,
            target or manifest.target,
            arch=arch,
            components=components or None,
            max_prompt=max_prompt,
            force=force,
            say=note,
        )
    if triton is not None:
        found = built[0].record.arch if built else None
        repository = write_repository(bundle, triton, backend=triton_backend, arch=found)
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
            ["engine", "target", "arch", "type", "size", "seconds", "builder"],
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
