"""The tensors of a checkpoint on disk: which files hold them, where each lies; read by name, one at a time."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from lmmprune.errors import ModelError
from lmmprune.limits import parse_json, read_json
from lmmprune.stored import Stored

_SINGLE = "model.safetensors"
_INDEX = f"{_SINGLE}.index.json"
_PICKLES = {".bin", ".pt", ".pth", ".ckpt"}

DTYPES = {
    "F64": ir.DataType.DOUBLE,
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
    "I64": ir.DataType.INT64,
    "I32": ir.DataType.INT32,
    # Whoever finds these has a checkpoint that is quantized already (see ``packed``), or a mask.
    "F8_E4M3": ir.DataType.FLOAT8E4M3FN,
    "F8_E5M2": ir.DataType.FLOAT8E5M2,
    "I16": ir.DataType.INT16,
    "I8": ir.DataType.INT8,
    "U8": ir.DataType.UINT8,
    "U16": ir.DataType.UINT16,
    "U32": ir.DataType.UINT32,
    "U64": ir.DataType.UINT64,
    "BOOL": ir.DataType.BOOL,
}
"""Types of safetensors that are known."""


def entries(directory: Path, named: str | None = None) -> dict[str, Stored]:
    """Return every tensor of a safetensors checkpoint, single file or sharded, by its name on disk.

    Args:
        directory: The checkpoint.
        named: The file or index that its configuration names (``transformers_weights``), which goes before all others.

    Raises:
        ModelError: No safetensors (pickles are refused), a missing or damaged shard, an index that disagrees.
    """
    file = chosen(directory, named)
    if not file.name.endswith(".index.json"):
        return _scan(file)
    index = _read_index(file)
    found: dict[str, Stored] = {}
    for shard in sorted(set(index.values())):
        found.update(_scan(directory / shard))
    lost = sorted(set(index) - set(found))
    if lost:
        raise ModelError(
            f"{file.name} names '{lost[0]}' (and {len(lost) - 1} more) that no shard holds: download again"
        )
    return found


def passed_over(directory: Path, named: str | None = None) -> str | None:
    """Say which weights beside the chosen ones aren't read, as transformers doesn't; None if there are no others."""
    file = chosen(directory, named)
    if file.name == _SINGLE and (directory / _INDEX).is_file():
        return f"'{directory}' has '{_SINGLE}' and '{_INDEX}': the single file is read, as transformers does"
    return None


def chosen(directory: Path, named: str | None) -> Path:
    """Return the file of weights, or the index of several, that transformers would take."""
    names = [named] if named else [_SINGLE, _INDEX]
    for name in names:
        if Path(name).name != name or not name.endswith((".safetensors", ".safetensors.index.json")):
            raise ModelError(
                f"config.json of '{directory}' names the weights '{name}' (transformers_weights): expected a plain"
                " file name that ends in .safetensors or .safetensors.index.json"
            )
        if (directory / name).is_file():
            return directory / name
    raise ModelError(f"no {' or '.join(names)} in '{directory}': {_instead(directory)}")


def _instead(directory: Path) -> str:
    """Say what a directory without a checkpoint's weights has instead, and what to do."""
    present = sorted(path.name for path in directory.glob("*")) if directory.is_dir() else []
    safetensors = [name for name in present if name.endswith(".safetensors")]
    pickles = [name for name in present if Path(name).suffix in _PICKLES]
    if any(name.startswith("adapter_model.") for name in present):
        return (
            "it has a PEFT adapter's weights, not a model's: give the model that it was trained on as --model, and this"
            " directory as --adapter"
        )
    if any(name.startswith("consolidated") for name in safetensors):
        return "it has 'consolidated' weights, under other names: download the files of the transformers layout too"
    if safetensors:
        return (
            f"it has {', '.join(safetensors[:3])}, which transformers doesn't look for either: rename a single file to"
            f" {_SINGLE}, or download the index of the shards"
        )
    if pickles:
        return (
            f"it has only pickled weights ({pickles[0]}), which are never loaded: load it with transformers and save it"
            " with save_pretrained, which writes safetensors"
        )
    if any(name.endswith(".gguf") for name in present):
        return "it has GGUF weights, which are quantized for llama.cpp: give the checkpoint that they were made from"
    return "not a checkpoint with weights; download them, or use --weights dummy"


def _read_index(file: Path) -> Mapping[str, str]:
    """Return which shard holds each tensor."""
    try:
        index = read_json(file)["weight_map"]
        if all(Path(shard).name == shard for shard in index.values()):
            return dict(index)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"'{file}' isn't an index of shards ({error!r}): download it again") from error
    raise ModelError(f"'{file}' names shards outside of '{file.parent}': expected plain file names")


def _scan(file: Path) -> dict[str, Stored]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as handle:
            keys = list(handle.keys())
    except FileNotFoundError as error:
        raise ModelError(f"the shard '{file.name}' is missing in '{file.parent}': download it again") from error
    except (SafetensorError, OSError) as error:
        raise ModelError(f"'{file}' is truncated or not safetensors ({error}): download it again") from error
    # The library has checked the header; it doesn't tell where the tensors begin.
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        try:
            header = parse_json(stream.read(length))
        except ValueError as error:
            raise ModelError(f"'{file}' has a header that can't be read ({error}): download it again") from error
    return {key: _stored(file, key, header[key], 8 + length) for key in keys}


def _stored(file: Path, key: str, row: dict[str, Any], begin: int) -> Stored:
    if row["dtype"] not in DTYPES:
        raise ModelError(f"'{key}' in '{file}' is {row['dtype']}: expected one of {', '.join(DTYPES)}")
    return Stored(
        file=file,
        name=key,
        offset=begin + row["data_offsets"][0],
        dtype=DTYPES[row["dtype"]],
        shape=tuple(row["shape"]),
    )
