"""Open a bundle's engines on this machine's GPU: choose the target and the architecture, verify, then load."""

from __future__ import annotations

import shlex
import threading

from lmmprune.compiler.backends import load_tensorrt
from lmmprune.compiler.backends.cuda import CudaDevice
from lmmprune.compiler.backends.device import Device
from lmmprune.compiler.backends.engine import LoadedEngine, load_engine
from lmmprune.compiler.backends.engine_session import EngineSession
from lmmprune.compiler.bundle import engines
from lmmprune.compiler.bundle.bundle import ENGINES, Bundle
from lmmprune.compiler.bundle.engines import EngineRecord
from lmmprune.compiler.bundle.manifest import Graph
from lmmprune.compiler.targets.target import Target
from lmmprune.compiler.targets.targets import TARGETS
from lmmprune.errors import BundleError, MissingExtraError, TargetError


def open_engines(bundle: Bundle, target: Target) -> dict[str, EngineSession]:
    """Return component -> its engine, ready to run; all share one device, one stream and one scratch memory.

    Args:
        bundle: An opened bundle.
        target: What it was exported for; engines of another target are taken where that has none for this GPU.

    Raises:
        MissingExtraError: TensorRT's runtime or ``cuda-bindings`` isn't installed.
        TargetError: There is no GPU, TensorRT's version is another one, or an engine doesn't load.
        BundleError: There are no engines for this GPU, or they are damaged or stale.
    """
    try:
        device = CudaDevice(target.extra)
    except (MissingExtraError, TargetError) as error:
        raise type(error)(
            f"this bundle was exported for '{target.name}', whose engines run on an NVIDIA GPU: {error}; export it "
            f"again with '--target ort-cpu' for this machine, or run 'lmmprune build DIR --target {target.name}' and "
            "this command where the GPU is"
        ) from error
    target = _with_engines(bundle, target, device)
    trt = load_tensorrt.load(target)
    records = engines.read_records(engines.directory(bundle, target.name, device.arch))
    loaded = {}
    for component, graph in bundle.manifest.graphs.items():
        rebuild = shlex.join(
            ["lmmprune", "build", str(bundle.path), "--target", target.name, "--component", component, "--force"]
        )
        # The checksum is verified here, before TensorRT sees the file.
        path = engines.open_engine(bundle, target.name, device.arch, component)
        record = records[component]
        _check_builder(record, trt.__version__, device, rebuild)
        loaded[component] = load_engine(
            trt,
            path,
            profile_names=tuple(record.profiles),
            rebuild=rebuild,
            weights=bundle.file(graph.file) if record.options.get("strip_weights") else None,
            host_code=bool(record.options.get("version_compatible")) and target.lean_runtime,
        )
        _check_signature(loaded[component], graph)
    scratch = device.allocate(max(1, *(engine.scratch for engine in loaded.values())), "what engines compute with")
    turn = threading.RLock()
    return {component: EngineSession(engine, device, scratch, turn) for component, engine in loaded.items()}


def _with_engines(bundle: Bundle, target: Target, device: Device) -> Target:
    """Return the target whose engines for this GPU are in the bundle: the bundle's own, or another."""
    others = [other for other in TARGETS.values() if other.compiled and other.name != target.name]
    for candidate in (target, *others):
        if engines.read_records(engines.directory(bundle, candidate.name, device.arch)):
            return candidate
    folder = bundle.path / ENGINES
    there = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    raise BundleError(
        f"this bundle was exported for '{target.name}' and has no engines for this GPU ({device.name}, {device.arch}); "
        f"it has {', '.join(there) or 'none'}: lmmprune build {shlex.quote(str(bundle.path))} --target {target.name} "
        f"--arch {device.arch}"
    )


def _check_builder(record: EngineRecord, version: str, device: Device, rebuild: str) -> None:
    suits = record.version == version
    if record.options.get("version_compatible"):
        built, installed = _numbers(record.version), _numbers(version)
        suits = built[:1] == installed[:1] and built <= installed
    if not suits:
        raise TargetError(
            f"the {record.component} engine was built by {record.builder} {record.version}, installed is {version}, "
            f"which can't run it: {rebuild}"
        )
    if record.arch != device.arch:
        raise TargetError(
            f"the {record.component} engine is for {record.arch}, this GPU ({device.name}) is {device.arch}: {rebuild}"
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _check_signature(engine: LoadedEngine, graph: Graph) -> None:
    for what, found, expected in (
        ("inputs", engine.inputs, graph.inputs),
        ("outputs", engine.outputs, graph.outputs),
    ):
        now = {name: str(binding.dtype) for name, binding in found.items()}
        wanted = {tensor.name: tensor.dtype for tensor in expected}
        if now != wanted:
            differ = sorted(name for name in {*now, *wanted} if now.get(name) != wanted.get(name))
            raise BundleError(
                f"the {what} of '{engine.path}' aren't those of '{graph.file}' ({', '.join(differ[:3])}): "
                f"{engine.rebuild}"
            )
