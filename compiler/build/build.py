"""Build a bundle's engines for a target, or say exactly what to run where it is possible."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmmprune.compiler.backends import load_tensorrt
from lmmprune.compiler.build import compile_engine as tensorrt
from lmmprune.compiler.build.architectures import named_arch, present_or_named
from lmmprune.compiler.build.engine_spec import engine_spec
from lmmprune.compiler.build.inspect_engine import count_precisions, graph_weights, inspect_engine
from lmmprune.compiler.build.kept_engines import check_kept, ranges_of, useless
from lmmprune.compiler.build.memory import lacking_memory
from lmmprune.compiler.build.options import BuildOptions
from lmmprune.compiler.build.profiles import Profile
from lmmprune.compiler.build.progress import Step
from lmmprune.compiler.build.where_to_build import where_to_build
from lmmprune.compiler.bundle import engines
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.bundle.engines import EngineRecord
from lmmprune.compiler.bundle.manifest import Manifest, Precision
from lmmprune.compiler.targets import machine
from lmmprune.compiler.targets.target import Target
from lmmprune.compiler.targets.targets import TARGETS, resolve
from lmmprune.errors import InputError, MissingExtraError, TargetError, suggestion

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Built:
    """One engine after ``build``: its record, and whether it was there already."""

    record: EngineRecord
    fresh: bool
    path: Path


def build(
    bundle_dir: Path | str,
    target: str,
    *,
    arch: str | None = None,
    components: Sequence[str] | None = None,
    max_prompt: int | None = None,
    force: bool = False,
    options: BuildOptions | None = None,
    say: Say = lambda _: None,
    step: Step | None = None,
) -> list[Built]:
    """Compile a bundle's graphs into engines beside them.

    An engine that is there, built from the same graph by the same builder with the same profiles and options, is kept;
    one that is of no use any more, because its graph or the builder's version changed, is built again.

    Args:
        bundle_dir: The bundle.
        target: Name or alias of the target.
        arch: GPU architecture such as ``sm89``; None: the board that the alias names, else the GPU that is present.
        components: Which graphs; None: all of them.
        max_prompt: Longest prompt in tokens (None: as many as the model has positions).
        force: Build even what is up to date, or was built with other options.
        options: What to ask of the builder.
        say: Called with one line of progress at a time.
        step: Called with what the builder does, how much of it is done, and how much there is.

    Raises:
        BundleError: The bundle is missing or broken.
        InputError: A component is unknown, an engine was built with other options, or the directory can't be written.
        TargetError: The bundle doesn't suit the target, or this machine can't build for it.
        MissingExtraError: The builder isn't installed; the message holds the commands for another machine.
    """
    bundle, chosen, options = Bundle.open(bundle_dir), resolve(target), options or BuildOptions()
    check_suits(bundle, chosen)
    options.check(chosen, gpu=bool(machine.gpus()))
    components = components or tuple(bundle.manifest.graphs)
    for component in components:
        if component not in bundle.manifest.graphs:
            raise InputError(f"no component '{component}'{suggestion(component, bundle.manifest.graphs)}")
    spec = engine_spec(bundle.manifest, chosen, components=components, max_prompt=max_prompt, options=options)
    profiles, options = spec.profiles, spec.options
    wanted = named_arch(chosen, target, arch)
    try:
        trt = load_tensorrt.load(chosen)
        wanted = present_or_named(chosen, wanted)
    except (MissingExtraError, TargetError) as error:
        if chosen.architectures and isinstance(error, TargetError):
            raise  # it builds on any machine: another one isn't the remedy
        raise where_to_build(error, bundle, chosen, target, wanted) from error

    if not force:
        for component in components:
            check_kept(bundle, engines.directory(bundle, chosen.name, wanted), component, trt, profiles, options)
    built = []
    for component in components:
        folder = engines.directory(bundle, chosen.name, wanted)
        old = engines.read_records(folder).get(component)
        if old is not None and not force and (reason := useless(bundle, old, folder, trt)):
            say(f"{component}: the engine in '{folder}' is stale ({reason}); building it again")
        elif old is not None and not force:
            say(f"{component}: '{folder / old.file}' is up to date")
            built.append(Built(record=old, fresh=False, path=folder / old.file))
            continue
        if lack := lacking_memory(bundle, component):
            if chosen.builder_measured:
                raise TargetError(lack)
            say(lack)
        say(f"{component}: building for {chosen.name} on {wanted} with {trt.__name__} {trt.__version__}")
        record = _build_one(bundle, chosen, wanted, component, profiles[component], options, trt.__version__, say, step)
        built.append(Built(record=record, fresh=True, path=folder / record.file))
    return built


def check_suits(bundle: Bundle, target: Target) -> None:
    """Check that the bundle's graphs are what the target takes.

    Raises:
        TargetError: They aren't; the message holds the ``export`` command that makes a bundle that is.
    """
    manifest = bundle.manifest
    if not target.compiled:
        raise TargetError(
            f"target '{target.name}' needs no build, {target.title} reads the graphs as they are: lmmprune run "
            f"{shlex.quote(str(bundle.path))} (targets with engines: {', '.join(_compiled())})"
        )
    reason = _mismatch(manifest, TARGETS.get(manifest.target), target)
    if reason:
        raise TargetError(
            f"'{bundle.path}' was exported for '{manifest.target}' and can't be built for '{target.name}': {reason}; "
            f"export it again: {_export_command(bundle, target)}"
        )


def _compiled() -> list[str]:
    return [name for name, target in TARGETS.items() if target.compiled]


def _mismatch(manifest: Manifest, source: Target | None, target: Target) -> str | None:
    if manifest.target == target.name:
        return None
    scheme, group = manifest.precision.int8, manifest.precision.group
    if group is not None and (source is None or source.nbits_level is not None):
        return "its weights of four bits are written as MatMulNBits, which ONNX Runtime alone takes"
    if group is not None and group not in target.int4_groups:
        return f"its weights have groups of {group}, the target takes {', '.join(map(str, target.int4_groups))}"
    if scheme is not None and scheme != target.int8:
        return f"it is quantized as {scheme}, the target takes {target.int8}"
    if manifest.precision.dtype not in target.dtypes:
        return f"its type is {manifest.precision.dtype}, the target takes {', '.join(target.dtypes)}"
    if manifest.opset > target.max_opset:
        return f"its opset is {manifest.opset}, the target reads up to {target.max_opset}"
    left = source.native_ops - target.native_ops if source else frozenset()
    return f"it holds {', '.join(sorted(left))}, which the target doesn't take" if left else None


def _export_command(bundle: Bundle, target: Target) -> str:
    manifest = bundle.manifest
    words = ["lmmprune", "export", "--model", manifest.model]
    if manifest.weights == "dummy":
        words += ["--weights", "dummy"]
    if manifest.method is not None and manifest.schedule:
        kept = manifest.requested_tokens
        words += ["--method", manifest.method, *(("--schedule", "FILE") if kept is None else ("--keep", str(kept)))]
        for name, value in manifest.parameters.items():
            text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else value
            words += ["--set", f"{name}={text}"]
        if manifest.positions == manifest.llm_positions:
            words += ["--positions", manifest.positions]
    if manifest.precision.carried is not None:
        return shlex.join([*words, "--target", target.name, "-o", f"{bundle.path}-{target.name}"])
    if (group := manifest.precision.group) is not None:
        words += ["--int4", "--int4-group", str(group if group in target.int4_groups else target.int4_groups[0])]
    if manifest.precision.int8 is not None:
        words.append("--int8" if group is None else "--int8-vision")
    return shlex.join([*words, "--target", target.name, "-o", f"{bundle.path}-{target.name}"])


def _int8_of(precision: Precision, component: str) -> str | None:
    """Return the INT8 scheme of a component: the tower's beside INT4, the decoder's where integers are carried over."""
    others = component == "decoder" if precision.int4 is not None else component != "decoder" and precision.carried
    return None if others else precision.int8


def _build_one(
    bundle: Bundle,
    target: Target,
    arch: str,
    component: str,
    profiles: Sequence[Profile],
    options: BuildOptions,
    version: str,
    say: Say,
    step: Step | None,
) -> EngineRecord:
    precision, graph = bundle.manifest.precision, bundle.file(bundle.manifest.graphs[component].file)
    weights = graph_weights(graph, bundle.manifest.graphs[component])
    start = time.perf_counter()

    def named(phase: str, done: int, of: int) -> None:
        assert step is not None
        step(f"{component}: {phase}", done, of)

    engine = tensorrt.build_engine(
        target, graph, profiles=profiles, arch=arch, options=options, say=say, step=named if step else None
    )
    seconds = round(time.perf_counter() - start, 3)
    here = any(gpu.arch == arch for gpu in machine.gpus())
    layers = inspect_engine(load_tensorrt.load(target), engine.plan) if here else None
    record = EngineRecord(
        component=component,
        target=target.name,
        arch=arch,
        file=f"{component}.engine",
        bytes=0,
        sha256="",
        source=engines.sources(bundle, component),
        builder=target.backend,
        version=version,
        seconds=seconds,
        dtype=precision.dtype,
        int8=_int8_of(precision, component),
        profiles=ranges_of(profiles),
        decomposed_attention=engine.decomposed,
        options=options.recorded(),
        weights=weights.bytes if weights else {},
        float16_bytes=weights.float16_bytes if weights else 0,
        layers=None if layers is None else count_precisions(layers),
    )
    return engines.write_engine(engines.directory(bundle, target.name, arch), engine.plan, record)
