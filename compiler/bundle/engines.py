"""The engines of a bundle: ``engines/<target>-<arch>/<component>.engine`` with one ``engine.json`` that describes them.

An engine is only as good as the graph that it was built from: the record holds the checksums of its sources, and an
engine whose bundle was exported again is stale.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from lmmprune.compiler.bundle import seal
from lmmprune.compiler.bundle.atomic import replace_file
from lmmprune.compiler.bundle.bundle import ENGINES, Bundle, file_sha256
from lmmprune.compiler.bundle.convert import structure
from lmmprune.compiler.bundle.interface import SELECTION
from lmmprune.compiler.bundle.lock import only_writer
from lmmprune.contained import stray
from lmmprune.errors import BundleError, InputError
from lmmprune.limits import bounded, read_json, shortened

RECORD = "engine.json"
_MOST_BYTES = 2**24
_NAME = 200  # letters
_SIZE = 2**50  # bytes
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


@dataclass(frozen=True, kw_only=True)
class _Records:
    """What ``engine.json`` holds beside its seal."""

    components: Mapping[str, EngineRecord]


def _check(component: str, record: EngineRecord) -> None:
    """Check what a record says beyond the types of its fields.

    Raises:
        ValueError: It can't be; one line that names the field.
    """
    field = f"components.{component}"
    if record.component != component:
        raise ValueError(f"{field}.component is {shortened(record.component)}: expected '{component}'")
    for name in ("component", "target", "arch", "file", "builder", "version", "dtype"):
        value = getattr(record, name)
        if not (0 < len(value) <= _NAME and value.isprintable()):
            raise ValueError(f"{field}.{name} is {shortened(value)}: expected 1 to {_NAME} letters")
    for name in ("bytes", "float16_bytes", "decomposed_attention"):
        bounded(getattr(record, name), f"{field}.{name}", 0, _SIZE)
    if not 0 <= record.seconds < _SIZE:
        raise ValueError(f"{field}.seconds is {record.seconds}: expected a number from 0 on")
    for name, row in record.profiles.items():
        for tensor, shapes in row.items():
            _check_profile(f"{field}.profiles.{name}.{tensor}", shapes)


def _check_profile(field: str, shapes: Any) -> None:
    """Check the smallest, likeliest and largest shape of an input."""
    rows = shapes if isinstance(shapes, list) else ()
    if len(rows) != 3 or not all(isinstance(row, list) for row in rows) or len({len(row) for row in rows}) != 1:
        raise ValueError(f"{field} is {shortened(shapes)}: expected three shapes of one rank")
    for number in (number for row in rows for number in row):
        bounded(number, field, 0, _SIZE)


def directory(bundle: Bundle, target: str, arch: str) -> Path:
    """Return where the engines of a target and an architecture live."""
    return bundle.path / ENGINES / f"{target}-{arch}"


def sources(bundle: Bundle, component: str) -> dict[str, str]:
    """Return the checksums of a component's graph and of its weight files.

    Buckets share one, vision graphs of several sizes that of the largest, all graphs the checkpoint's, and the decoder
    reads the embedding table of a selection.
    """
    graph = bundle.manifest.graphs[component].file
    others = {name for view in bundle.manifest.sizes for name in view.graphs} - {"vision", SELECTION}
    stem = "buckets" if component.startswith("bucket_") else _stem(graph)
    lent = f"{SELECTION}.onnx.data" if component == "decoder" else None
    if component in others:
        # vision_HxW reads what vision does, selection_HxW what selection does.
        lent = f"{component.split('_')[0]}.onnx.data"
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
        if reason := _stray(folder, RECORD):
            raise ValueError(f"it {reason}")
        raw = read_json(folder / RECORD, finite=True, most=_MOST_BYTES)
        rest = {name: value for name, value in raw.items() if name != seal.SEAL} if isinstance(raw, dict) else raw
        records = structure(rest, _Records).components
        for name, record in records.items():
            _check(name, record)
        if not seal.holds(raw):
            raise ValueError("it was changed after the build: its seal is missing or another")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BundleError(f"'{folder / RECORD}' can't be read ({error}): delete '{folder}' and build again") from error
    return dict(records)


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
    if not is_whole(folder, record):
        raise BundleError(f"'{path}' isn't the engine that was built (its checksum differs): {again} --force")
    return path


def is_whole(folder: Path, record: EngineRecord) -> bool:
    """Return whether the file of an engine is the one that was built, to the bit."""
    path = folder / PurePosixPath(record.file).name
    if _stray(folder, path.name) is not None:
        return False
    return path.is_file() and path.stat().st_size == record.bytes and file_sha256(path) == record.sha256


def write_engine(folder: Path, plan: bytes | memoryview, record: EngineRecord) -> EngineRecord:
    """Write an engine, then its record; return the record with size and checksum.

    An engine that is there stays until the record tells of the new one, which has another name then: whenever the
    process is killed, the record's engines are whole.

    Raises:
        InputError: The directory can't be written or the disk is full.
    """
    data = memoryview(plan)
    if not folder.resolve().is_relative_to(_root(folder).resolve()):
        raise InputError(f"'{folder}' is a link that leads out of the bundle: remove it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with only_writer(folder / ".lock", None):
            rows = read_records(folder)
            # Of what no record tells a killed process may have been writing.
            taken = {row.file for row in rows.values()}
            names = (f"{record.component}{f'.{number}' * bool(number)}.engine" for number in itertools.count())
            name = next(name for name in names if name not in taken)
            checksum = hashlib.sha256(data).hexdigest()
            record = dataclasses.replace(record, file=name, bytes=data.nbytes, sha256=checksum)
            with replace_file(folder / name) as stream:
                stream.write(data)
            old = rows.get(record.component)
            rows[record.component] = record
            described = {name: dataclasses.asdict(row) for name, row in rows.items()}
            with replace_file(folder / RECORD) as stream:
                stream.write((json.dumps(seal.sealed({"components": described}), indent=2) + "\n").encode())
            if old is not None:
                (folder / PurePosixPath(old.file).name).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"'{folder}' can't be written ({error.strerror}): free space or change its permissions") from (
            error
        )
    return record


def _root(folder: Path) -> Path:
    """Return the bundle of an engine directory: ``BUNDLE/engines/TARGET-ARCH``."""
    return folder.parent.parent


def _stray(folder: Path, name: str) -> str | None:
    return stray(_root(folder), f"{folder.parent.name}/{folder.name}/{name}")
