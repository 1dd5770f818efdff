"""A checkpoint on disk: configuration and safetensors, read by name, one tensor at a time."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from lmmprune.errors import ModelError, require
from lmmprune.stored import Stored

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


DTYPES = {
    "F64": ir.DataType.DOUBLE,
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
    "I64": ir.DataType.INT64,
    "I32": ir.DataType.INT32,
}
"""Types of safetensors that are read; 8-bit ones belong to checkpoints that are quantized already."""


def read_config(directory: Path) -> Any:
    """Read ``config.json`` into the transformers configuration, never running remote code.

    Raises:
        ModelError: No config.json, not JSON, or one that asks for remote code.
    """
    file = directory / "config.json"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"no config.json in '{directory}': not a Hugging Face checkpoint") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"'{file}' can't be read ({error})") from error
    if not isinstance(raw, dict):
        raise ModelError(f"'{file}' holds {type(raw).__name__}, expected an object")
    if "auto_map" in raw:
        raise ModelError(f"'{file}' has auto_map: the model needs remote code, which is never run; use a native port")
    require("transformers", "export")
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except (ValueError, KeyError, OSError, TypeError, StrictDataclassError) as error:
        raise ModelError(
            f"'{file}' isn't a configuration that transformers knows ({' '.join(str(error).split())[:200]})"
        ) from error


def entries(directory: Path) -> dict[str, Stored]:
    """Return every tensor of a safetensors checkpoint, single file or sharded, by its name on disk.

    Raises:
        ModelError: No safetensors (pickles are refused), a missing or damaged shard, an index that disagrees.
    """
    if (directory / _INDEX).is_file():
        index = _read_index(directory / _INDEX)
        found: dict[str, Stored] = {}
        for shard in sorted(set(index.values())):
            found.update(_scan(directory / shard))
        lost = sorted(set(index) - set(found))
        if lost:
            raise ModelError(
                f"{_INDEX} names '{lost[0]}' (and {len(lost) - 1} more) that no shard holds: download again"
            )
        return found
    if (directory / _SINGLE).is_file():
        return _scan(directory / _SINGLE)
    pickles = sorted(p.name for p in directory.glob("*") if p.suffix in {".bin", ".pt", ".pth", ".ckpt"})
    if pickles:
        raise ModelError(
            f"'{directory}' has only pickled weights ({pickles[0]}), which are never loaded:"
            " save it again with save_pretrained(..., safe_serialization=True)"
        )
    raise ModelError(f"no {_SINGLE} or {_INDEX} in '{directory}': not a checkpoint, or use --weights dummy")


def _read_index(file: Path) -> dict[str, str]:
    """Return which shard holds each tensor."""
    try:
        index = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
        if all(Path(shard).name == shard for shard in index.values()):
            return dict(index)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
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
        header = json.loads(stream.read(length))
    result = {}
    for key in keys:
        row = header[key]
        if row["dtype"] not in DTYPES:
            raise ModelError(
                f"'{key}' in '{file}' is {row['dtype']}: expected a floating-point checkpoint"
                f" ({', '.join(DTYPES)}), not one that is quantized already"
            )
        result[key] = Stored(
            file=file,
            name=key,
            offset=8 + length + row["data_offsets"][0],
            dtype=DTYPES[row["dtype"]],
            shape=tuple(row["shape"]),
        )
    return result


def by_module_name(model: Any, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Rename checkpoint tensors to the loaded module's parameter names, by transformers' own table.

    Args:
        model: The module whose ``state_dict`` names are wanted (its parameters may be fake).
        tensors: Where they lie, by their names on disk.

    Raises:
        ModelError: A parameter has no tensor, or one of another shape.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)}
    renamings = [entry for entry in get_model_conversion_mapping(model) if isinstance(entry, WeightRenaming)]
    # Once: building it takes as long as there are parameters.
    state = model.state_dict()
    found: dict[str, Stored] = {}
    for key, entry in tensors.items():
        name, _ = rename_source_key(key, renamings, [], model.base_model_prefix, state)
        if name not in wanted:
            # Older files keep the CLIP tower's inner module in the name.
            name = name.replace("vision_tower.vision_model.", "vision_tower.")
        found[name] = entry
    for name in model.all_tied_weights_keys if getattr(model, "all_tied_weights_keys", None) else {}:
        if name in wanted and name not in found and model.all_tied_weights_keys[name] in found:
            found[name] = found[model.all_tied_weights_keys[name]]
    lost = sorted(set(wanted) - set(found))
    if lost:
        raise ModelError(f"the checkpoint lacks '{lost[0]}' (and {len(lost) - 1} more of {len(wanted)} tensors)")
    for name, shape in wanted.items():
        if found[name].shape != shape:
            raise ModelError(f"'{name}' has shape {list(found[name].shape)}, config.json says {list(shape)}")
    return {name: found[name] for name in wanted}
