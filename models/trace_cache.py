"""Canonical graphs on disk: the same architecture is traced once per release of the tools, not once per export.

A canonical graph holds no weights, only where each comes from: a file takes a few hundred kilobytes, and the weights of
whatever checkpoint has the architecture are bound to it again. A file that is damaged, or was made by other code,
counts as none.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmmprune.caches import cache_directory
from lmmprune.lazy import Origin, Weight
from lmmprune.models.private_names import ties

if TYPE_CHECKING:
    import onnx_ir as ir

    from lmmprune.models.source import Source

FORMAT = 1
LIMIT = 256 * 2**20
"""Bytes that all files may take together; those that were used least recently go first."""
_ABANDONED = 3600
"""Seconds after which a file that is half written is a killed process's: writing takes less than one."""
_META = "lmmprune.origins"
_TOOLS = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "optimum")


def directory() -> Path:
    """Return where traces are kept: ``$LMMPRUNE_CACHE/trace``, or ``~/.cache/lmmprune/trace``."""
    return cache_directory("trace")


def key_of(source: Source, model: Any, **more: Any) -> str:
    """Return a digest of all that a canonical graph depends on.

    Args:
        source: The model to export; its weights don't count.
        model: Its module, for what is tied.
        more: Further arguments of the trace.
    """
    config = source.config.to_dict()
    # How a checkpoint holds its weights is no part of the module, which is built in floating point.
    for name in ("_name_or_path", "transformers_version", "quantization_config", "compression_config"):
        config.pop(name, None)
    parts = {
        "format": FORMAT,
        "family": source.family.name,
        "config": config,
        "tied": sorted(ties(model).items()),
        "tools": {name: importlib.metadata.version(name) for name in _TOOLS},
        "code": _code(),
        **more,
    }
    return hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()


@functools.cache
def _code() -> str:
    """Return a digest of the code that traces: a change to it makes all files stale."""
    import lmmprune.lazy
    import lmmprune.models

    files = [*Path(lmmprune.models.__file__).parent.rglob("*.py"), Path(lmmprune.lazy.__file__)]
    digest = hashlib.sha256()
    for file in sorted(files, key=str):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def pack(model: ir.Model) -> bytes:
    """Return a canonical graph without its weights, and what each of them is."""
    import onnx_ir as ir

    copy, rows = model.clone(), []
    for name, value in copy.graph.initializers.items():
        weight = value.const_value
        if isinstance(weight, Weight):
            assert weight.origin is not None, f"{name} is computed: only the order of axes may have changed"
            rows.append({"name": name, "weight": weight.origin.weight, "perm": weight.origin.perm})
            # ONNX's way to say that values are elsewhere; nobody follows it.
            value.const_value = ir.ExternalTensor(
                "weights", None, None, weight.dtype, shape=weight.shape, name=name, base_dir=""
            )
    copy.metadata_props[_META] = json.dumps(rows)
    return bytes(ir.to_proto(copy).SerializeToString())


def unpack(packed: bytes) -> tuple[ir.Model, dict[str, Origin]]:
    """Return a graph whose weights aren't bound yet, and for each of them by its name in there what it is.

    Raises:
        ValueError: It isn't what ``pack`` made.
    """
    import onnx
    import onnx_ir as ir

    try:
        model = ir.from_proto(onnx.load_model_from_string(packed))
        rows = json.loads(model.metadata_props.pop(_META))
        return model, {row["name"]: Origin(row["weight"], row["perm"] and tuple(row["perm"])) for row in rows}
    except Exception as error:  # protobuf's own, or whatever a damaged graph leads to
        raise ValueError("not a packed graph") from error


def load(key: str, name: str) -> bytes | None:
    """Read what ``save`` wrote; None if it isn't there."""
    with contextlib.suppress(OSError):
        file = _file(key, name)
        digest, _, packed = file.read_bytes().partition(b"\n")
        if hashlib.sha256(packed).hexdigest().encode() == digest:
            os.utime(file)
            return packed
    return None


def save(key: str, name: str, packed: bytes) -> None:
    """Keep a graph; a disk that doesn't take it is no failure. Whole or not at all, also with two writers.

    Args:
        key: From ``key_of``.
        name: Of the graph.
        packed: From ``pack``.
    """
    file = _file(key, name)
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}.tmp")
    with contextlib.suppress(OSError):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(hashlib.sha256(packed).hexdigest().encode() + b"\n" + packed)
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)
        _trim()


def _file(key: str, name: str) -> Path:
    return directory() / f"{key}.{name}"


def _trim() -> None:
    """Remove what was used least recently, until the rest fits."""
    files = []
    for file in directory().iterdir():
        if not file.name.startswith("."):
            files.append(file)
        elif file.suffix == ".tmp" and time.time() - file.stat().st_mtime > _ABANDONED:
            file.unlink(missing_ok=True)
    total = 0
    for status, file in sorted(((file.stat(), file) for file in files), key=lambda row: -row[0].st_mtime):
        total += status.st_size
        if total > LIMIT:
            file.unlink(missing_ok=True)
