"""A checkpoint on disk: configuration and safetensors, read by name, one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmmprune.errors import ModelError, require

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: its file, its name in there, its shape and its safetensors dtype (``F16``, ...)."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str

    def read(self) -> np.ndarray[Any, Any]:
        """Read the tensor as float32 (integers as they are); nothing is kept."""
        from safetensors import safe_open

        # NumPy has no bfloat16, and torch is there whenever a checkpoint is read.
        with safe_open(self.file, framework="pt") as handle:
            tensor = handle.get_tensor(self.key)
        return np.asarray((tensor.float() if tensor.is_floating_point() else tensor).numpy())


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
    if "auto_map" in raw:
        raise ModelError(f"'{file}' has auto_map: the model needs remote code, which is never run; use a native port")
    require("transformers", "export")
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except (ValueError, KeyError, OSError, TypeError) as error:
        raise ModelError(
            f"'{file}' isn't a configuration that transformers knows ({str(error).splitlines()[0]})"
        ) from error


def entries(directory: Path) -> dict[str, Entry]:
    """Return every tensor of a safetensors checkpoint, single file or sharded, by its name on disk.

    Raises:
        ModelError: No safetensors (pickles are refused), a missing or damaged shard, an index that disagrees.
    """
    if (directory / _INDEX).is_file():
        index = json.loads((directory / _INDEX).read_text(encoding="utf-8"))["weight_map"]
        found: dict[str, Entry] = {}
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


def _scan(file: Path) -> dict[str, Entry]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as handle:
            result = {}
            for key in handle.keys():  # noqa: SIM118 - not a mapping, it has no iterator
                view = handle.get_slice(key)
                result[key] = Entry(file, key, tuple(view.get_shape()), view.get_dtype())
            return result
    except FileNotFoundError as error:
        raise ModelError(f"the shard '{file.name}' is missing in '{file.parent}': download it again") from error
    except (SafetensorError, OSError) as error:
        raise ModelError(f"'{file}' is truncated or not safetensors ({error}): download it again") from error


def by_module_name(model: Any, tensors: Mapping[str, Entry]) -> dict[str, Entry]:
    """Rename checkpoint tensors to the loaded module's parameter names, by transformers' own table.

    Args:
        model: The module whose ``state_dict`` names are wanted (its parameters may be fake).
        tensors: Entries by their names on disk.

    Raises:
        ModelError: A parameter has no tensor, or one of another shape.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)}
    renamings = [entry for entry in get_model_conversion_mapping(model) if isinstance(entry, WeightRenaming)]
    found: dict[str, Entry] = {}
    for key, entry in tensors.items():
        name, _ = rename_source_key(key, renamings, [], model.base_model_prefix, model.state_dict())
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
