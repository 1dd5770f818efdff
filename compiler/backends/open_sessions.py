"""Choose the back end of a bundle and load its graphs."""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import PurePosixPath

from lmmprune.compiler.backends.session import Session
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.bundle.external_data import external_files
from lmmprune.compiler.targets.targets import TARGETS
from lmmprune.errors import require

Loaded = MutableMapping[tuple[object, ...], Session]
"""Graphs in ONNX Runtime by what they are: target, checksums of graph and weights, and how they are run."""


def open_sessions(bundle: Bundle, *, threads: int | None = None, loaded: Loaded | None = None) -> dict[str, Session]:
    """Return component -> its loaded graph: ``vision``, ``decoder``, ``bucket_K`` and ``selection``.

    Args:
        bundle: An opened bundle; its target says which back end runs it.
        threads: Threads within an operator, where the CPU computes; None leaves it to the back end.
        loaded: Graphs of other bundles, which are taken where graph and weights are equal; new ones are added. Engines
            aren't shared.

    Raises:
        TargetError: The bundle is for a device that isn't here.
        BundleError: Its files or its engines can't be used.
        MissingExtraError: The back end isn't installed.
    """
    target = TARGETS.get(bundle.manifest.target)
    if target is not None and target.compiled:
        from lmmprune.compiler.backends.open_engines import open_engines

        return dict(open_engines(bundle, target))
    if target is not None and target.backend == "openvino":
        from lmmprune.compiler.backends.openvino import open_component

        return {component: open_component(bundle, component, threads=threads) for component in bundle.manifest.graphs}
    from lmmprune.compiler.backends.onnxruntime import OrtSession, target_of

    target_of(bundle.manifest.target)
    known: Loaded = {} if loaded is None else loaded
    found: dict[str, Session] = {}
    for component, graph in bundle.manifest.graphs.items():
        in_place = bundle.manifest.cache.in_place if component == "decoder" else {}
        # Whoever loads one bundle alone needn't look for what names its weights.
        same = [component] if loaded is None else _checksums(bundle, graph.file)
        key = (bundle.manifest.target, threads, *same, *sorted(in_place.items()))
        if key not in known:
            known[key] = OrtSession(
                bundle.file(graph.file),
                target=bundle.manifest.target,
                threads=threads,
                expected=graph,
                in_place=in_place,
            )
        found[component] = known[key]
    return found


def _checksums(bundle: Bundle, file: str) -> list[str]:
    """Return what a graph and its weights are told by."""
    beside = sorted(external_files(bundle.file(file)))
    names = [file, *((PurePosixPath(file).parent / location).as_posix() for location in beside)]
    return [text for name in names for text in (name, bundle.manifest.files[name].sha256)]


def import_backend(target: str) -> tuple[str, str]:
    """Import what runs a target's graphs; return the module's name and its version.

    Raises:
        TargetError: It doesn't load, or is of a version that the target doesn't describe.
        MissingExtraError: It isn't installed.
    """
    known = TARGETS.get(target)
    if known is not None and known.compiled:
        from lmmprune.compiler.backends import load_tensorrt

        require("cuda.bindings.runtime", known.extra)
        module = load_tensorrt.load(known)
    elif known is not None and known.backend == "openvino":
        module = require("openvino", known.extra)
    else:
        module = require("onnxruntime", "cpu")
    return module.__name__, module.__version__
