"""The engines of a bundle: ``engines/<target>-<arch>/<component>.engine`` with one ``engine.json`` that describes them.

An engine is only as good as the graph that it was built from: the record holds the checksums of its sources, and an
engine whose bundle was exported again is stale.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from lmmprune.compiler.bundle.atomic import replace_file
from lmmprune.compiler.bundle.bundle import ENGINES, Bundle, file_sha256
from lmmprune.compiler.bundle.interface import SELECTION
from lmmprune.errors import BundleError, InputError

RECORD = "engine.json"
# Folder of a bundle with files of the checkpoint that its graphs read (see write_graphs.py).
SHARED = "weights"


@dataclass(frozen=True, kw_only=True)
class EngineRecord:
    """One engine: what it is, from what it was built and by what.

    Attributes:
        component: ``vision``, ``decoder``, ``bucket_K`` or ``selection``.
        target: Name of the target.
        arch: GPU architecture that it runs on.
        file: Name beside ``engine.json``.
        bytes: Size.
        sha256: Checksum of the file.
        source: File of the bundle -> its checksum when the engine was built.
        builder: Module that built it.
        version: The module's version.
        seconds: Time that parsing and building took.
        dtype: Floating-point type of the graph.
        int8: Quantization scheme of the graph, None if it isn't quantized.
        profiles: Name -> input -> smallest, likeliest and largest shape, in the order of the engine's profiles.
        decomposed_attention: Attention layers that may be built from several kernels, for lack of a fused one.
        weights: Type -> bytes of the graph's weights that went in; empty where nothing could count them.
        float16_bytes: What these weights would take in 16 bits each.
        options: What was asked of the builder, where it isn't the default.
        layers: Type -> layers with weights that compute in it, from the engine's inspector; None without its GPU.
    """

    component: str
    target: str
    arch: str
    file: str
    bytes: int
    sha256: str
    source: Mapping[str, str]
    builder: str
    version: str
    seconds: float
    dtype: str
    int8: str | None
    profiles: Mapping[str, Mapping[str, Any]]
    decomposed_attention: int
    weights: Mapping[str, int] = field(default_factory=dict)
    float16_bytes: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    layers: Mapping[str, int] | None = None

    @property
    def float16_ratio(self) -> float | None:
        """The engine's size over that of its weights in 16 bits; None if they weren't counted."""
        return self.bytes / self.float16_bytes if self.float16_bytes else None

    def stale(self, bundle: Bundle) -> str | None:
        """Return why the engine doesn't belong to the bundle's graph any more, None if it does."""
        now = sources(bundle, self.component)
        changed = sorted(name for name in {*now, *self.source} if now.get(name) != self.source.get(name))
        return f"{', '.join(changed)} changed after the engine was built" if changed else None


def directory(bundle: Bundle, target: str, arch: str) -> Path:
    """Return where the engines of a target and an architecture live."""
    return bundle.path / ENGINES / f"{target}-{arch}"


def sources(bundle: Bundle, component: str) -> dict[str, str]:
    """Return the checksums of a component's graph and of its weight files.

    Buckets share one, all graphs the checkpoint's, and the decoder reads the embedding table of a selection.
    """
    graph = bundle.manifest.graphs[component].file
    stem = "buckets" if component.startswith("bucket_") else _stem(graph)
    lent = f"{SELECTION}.onnx.data" if component == "decoder" else None
    return {
        name: entry.sha256
        for name, entry in bundle.manifest.files.items()
        if name in (graph, lent) or _stem(name) == stem or PurePosixPath(name).parts[0] == SHARED
    }


def _stem(name: str) -> str:
    return PurePosixPath(name).name.split(".")[0]


def read_records(folder: Path) -> dict[str, EngineRecord]:
    """Return component -> record of one engine directory; empty if there is none.

    Raises:
        BundleError: ``engine.json`` can't be understood.
    """
    try:
        raw = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return {name: EngineRecord(**row) for name, row in raw["components"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"'{folder / RECORD}' can't be read ({error}): delete '{folder}' and build again") from error


def open_engine(bundle: Bundle, target: str, arch: str, component: str) -> Path:
    """Return the path of an engine that is there, whole, and built from the bundle's present graph.

    Raises:
        BundleError: It is missing, changed or stale.
    """
    folder = directory(bundle, target, arch)
    again = f"lmmprune build '{bundle.path}' --target {target} --arch {arch}"
    record = read_records(folder).get(component)
    if record is None:
        raise BundleError(f"'{bundle.path}' has no {component} engine for {target} on {arch}: {again}")
    if reason := record.stale(bundle):
        raise BundleError(f"the {component} engine in '{folder}' is stale ({reason}): {again}")
    path = folder / PurePosixPath(record.file).name
    # A plan is code: it is handed to the runtime only if it is the one that was built.
    if not path.is_file() or path.stat().st_size != record.bytes or file_sha256(path) != record.sha256:
        raise BundleError(f"'{path}' isn't the engine that was built (its checksum differs): {again} --force")
    return path


def write_engine(folder: Path, plan: bytes | memoryview, record: EngineRecord) -> EngineRecord:
    """Write an engine, then its record; each appears whole or not at all. Return the record with size and checksum.

    Raises:
        InputError: The directory can't be written or the disk is full.
    """
    data = memoryview(plan)
    record = dataclasses.replace(record, bytes=data.nbytes, sha256=hashlib.sha256(data).hexdigest())
    others = {name: row for name, row in read_records(folder).items() if name != record.component}
    rows = {name: dataclasses.asdict(row) for name, row in {**others, record.component: record}.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replace_file(folder / record.file) as stream:
            stream.write(data)
        with replace_file(folder / RECORD) as stream:
            stream.write((json.dumps({"components": rows}, indent=2) + "\n").encode())
    except OSError as error:
        raise InputError(f"'{folder}' can't be written ({error.strerror}): free space or change its permissions") from (
            error
        )
    return record
