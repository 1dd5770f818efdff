"""Compile an ONNX file with TensorRT or TensorRT-RTX: one builder, the module is chosen at run time.

The two modules have the same API. TensorRT-RTX names the architecture that it compiles for and needs no GPU; TensorRT
compiles for the GPU that is present, and measures kernels on it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from lmmprune.compiler.backends import load_tensorrt
from lmmprune.compiler.backends.trt_log import make_log, one_line
from lmmprune.compiler.backends.trt_start import start
from lmmprune.compiler.build.options import BuildOptions
from lmmprune.compiler.build.origin import describe, find_node
from lmmprune.compiler.build.profiles import Profile
from lmmprune.compiler.build.progress import Step, watched
from lmmprune.compiler.build.timing_cache import load_timing_cache, save_timing_cache
from lmmprune.compiler.targets import machine
from lmmprune.compiler.targets.target import Target
from lmmprune.errors import TargetError

# What the builder says when a fused attention kernel doesn't exist (seen in TensorRT-RTX 1.7.1).
_NO_FUSED_KERNEL = "decomposable"


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A serialized engine.

    Attributes:
        plan: The engine, ready to be written to a file (the builder's own memory: it isn't copied).
        decomposed: Attention layers that may be built from several smaller kernels, for lack of a fused one.
    """

    plan: memoryview
    decomposed: int


def build_engine(
    target: Target,
    graph: Path,
    *,
    profiles: Sequence[Profile] = (),
    arch: str | None = None,
    options: BuildOptions | None = None,
    say: Callable[[str], None] | None = None,
    step: Step | None = None,
) -> Engine:
    """Compile one graph; weights in external files are read from beside it.

    Args:
        target: A target whose backend is ``tensorrt`` or ``tensorrt_rtx``.
        graph: The ONNX file.
        profiles: Ranges of the dynamic inputs; none if every shape is static.
        arch: ``sm89``, for targets that compile for a GPU that isn't present; None: the GPU that is.
        options: What to ask of the builder.
        say: Called with what the user should know (attention without a fused kernel), and with the builder's own
            messages if the options ask for them.
        step: Called with the builder's phase, how much of it is done, and how much there is.

    Raises:
        MissingExtraError: The builder's package isn't installed.
        TargetError: The architecture is unknown to the target, the builder doesn't start, or the parser or the builder
            refuses the graph; the message names the node.
        InputError: The timing cache can't be used.
    """
    trt = load_tensorrt.load(target)
    capability = _capability(trt, target, arch)
    options = options or BuildOptions()
    log = make_log(trt, say=say if options.verbose else None)
    builder = start(trt, "Builder", log)
    # TensorRT 10 types weakly unless told not to; 11 has no other way and ignores the flag.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        raise TargetError(_parser_message(parser, target, graph))
    config = builder.create_builder_config()
    # Without it the engine's inspector tells names only, not in which type a layer computes.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if capability is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(capability, 0)
    options.apply(target, trt, config)
    if options.timing_cache is not None:
        load_timing_cache(config, options.timing_cache)
    for profile in profiles:
        _add_profile(builder, config, profile)

    attention = list(_attention(trt, network))
    # Float32 has no fused kernel (seen): the layer has to be allowed to fall apart. In other types only on demand.
    decomposed = [layer for layer in attention if layer.get_input(0).dtype == trt.float32]
    for layer in decomposed:
        layer.decomposable = True
    with watched(trt, config, step):
        plan = builder.build_serialized_network(network, config)
        if plan is None and len(decomposed) < len(attention) and _NO_FUSED_KERNEL in log.errors():
            log.clear()
            decomposed = attention
            for layer in decomposed:
                layer.decomposable = True
            plan = builder.build_serialized_network(network, config)
    if plan is None:
        reason = one_line(log.errors())
        node = find_node(graph, log.errors())
        where = f" at node '{node}'{describe(graph, node)}" if node else ""
        raise TargetError(f"{target.title} can't compile '{graph.name}'{where}: {reason}: {_remedy(reason, options)}")
    if options.timing_cache is not None:
        save_timing_cache(config, options.timing_cache)
    if decomposed and say is not None:
        say(
            f"{graph.name}: {len(decomposed)} of {len(attention)} attention layers may fall apart into several "
            "kernels, because the builder has no fused one in this type"
        )
    return Engine(plan=memoryview(plan), decomposed=len(decomposed))


def _remedy(reason: str, options: BuildOptions) -> str:
    # Seen in TensorRT-RTX 1.7.1: "no tactics to implement the operation within workspace limit".
    if options.workspace is not None and re.search("workspace|memory|implementation", reason, re.IGNORECASE):
        return f"a --workspace of {options.workspace:,} bytes is too small for it: give more, or leave it out"
    return (
        "'build --verbose' shows what comes before it; another --dtype, or an export without --int8 or --static-cache, "
        "may build"
    )


def _capability(trt: ModuleType, target: Target, arch: str | None) -> Any:
    """Return the module's name of an architecture; None: it compiles for the GPU that is present."""
    if not target.architectures:
        return None
    # Of a GPU that is here but not in the list, the builder itself knows whether it compiles for it.
    unlisted = {gpu.arch for gpu in machine.gpus()} - {*target.architectures}
    if arch is None or arch in unlisted:
        return trt.ComputeCapability.CURRENT
    value = getattr(trt.ComputeCapability, arch.upper(), None)
    if value is None or arch not in target.architectures:
        raise TargetError(f"'{target.name}' can't build for '{arch}': it knows {', '.join(target.architectures)}")
    return value


def _attention(trt: ModuleType, network: Any) -> Any:
    kind = getattr(trt.LayerType, "ATTENTION_OUTPUT", None)  # TensorRT before 10.14 has no attention layer
    for index in range(network.num_layers if kind is not None else 0):
        layer = network.get_layer(index)
        if layer.type == kind:
            layer.__class__ = trt.IAttentionOutputLayer  # the binding hands out the base class
            yield layer.attention


def _add_profile(builder: Any, config: Any, profile: Profile) -> None:
    shapes = builder.create_optimization_profile()
    for name, (low, likely, high) in profile.shapes.items():
        try:
            shapes.set_shape(name, low, likely, high)
        except ValueError as error:
            raise TargetError(f"profile '{profile.name}', input '{name}': {low} .. {high}: {error}") from error
    if config.add_optimization_profile(shapes) < 0:
        raise TargetError(f"profile '{profile.name}' doesn't fit the graph's inputs: {dict(profile.shapes)}")


def _parser_message(parser: Any, target: Target, graph: Path) -> str:
    if not parser.num_errors:
        return f"{target.title} can't read '{graph}': not an ONNX file, or its weights are missing"
    error = parser.get_error(0)
    name, kind = error.node_name(), error.node_operator()
    where = f" at node '{name}' ({kind}){describe(graph, name)}" if name else ""
    return f"{target.title} can't take '{graph.name}'{where}: {one_line(error.desc())}"
