"""``config.json`` of a checkpoint: what kind of model it is, or why it can't be one that is served."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lmmprune.errors import ModelError, below, require, said
from lmmprune.limits import shortened
from lmmprune.models.config_sizes import check_sizes
from lmmprune.models.read_json import read_json

CONFIG = "config.json"
ADAPTER = "adapter_config.json"

_ORIGINAL_LLAVA = ("LlavaLlamaForCausalLM", "LlavaMistralForCausalLM", "LlavaQwenForCausalLM", "LlavaMPTForCausalLM")
# (architecture, hidden size, whether pictures are cut into tiles) -> the same model in transformers' layout.
_CONVERTED = {
    ("LlavaLlamaForCausalLM", 4096, False): "llava-hf/llava-1.5-7b-hf",
    ("LlavaLlamaForCausalLM", 5120, False): "llava-hf/llava-1.5-13b-hf",
    ("LlavaLlamaForCausalLM", 4096, True): "llava-hf/llava-v1.6-vicuna-7b-hf",
    ("LlavaLlamaForCausalLM", 5120, True): "llava-hf/llava-v1.6-vicuna-13b-hf",
    ("LlavaMistralForCausalLM", 4096, True): "llava-hf/llava-v1.6-mistral-7b-hf",
    ("LlavaQwenForCausalLM", 896, True): "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
}
# Checkpoints that bring their own code -> the port of the same model that transformers has.
_PORTS = {
    "internvl_chat": "its port in transformers, whose name ends in -hf, such as OpenGVLab/InternVL3-1B-hf",
    "internvl": "its port in transformers, whose name ends in -hf, such as OpenGVLab/InternVL3-1B-hf",
}
# Parts that say the sizes: without them the class's defaults, a model of 7B, would be built.
_PARTS = ("text_config", "vision_config")


def read_raw(directory: Path) -> dict[str, Any]:
    """Read ``config.json`` as it is.

    Raises:
        ModelError: It isn't there, isn't JSON, or belongs to something else than a whole model.
    """
    if not (directory / CONFIG).is_file():
        raise ModelError(f"no {CONFIG} in '{directory}': {_instead(directory)}")
    raw = read_json(directory / CONFIG)
    try:
        _check_names(raw)
        check_sizes(raw)
    except ValueError as error:
        raise ModelError(f"'{directory / CONFIG}': {error}; is the file whole?") from error
    return raw


def read_config(directory: Path, raw: Mapping[str, Any] | None = None) -> Any:
    """Read ``config.json`` into the transformers configuration, never running remote code.

    Raises:
        ModelError: No config.json, not JSON, or of a model that transformers can't build from it alone.
    """
    from lmmprune.models.registry import FAMILIES

    raw = read_raw(directory) if raw is None else raw
    file = directory / CONFIG
    _refuse_original_llava(file, raw)
    # A family that is served has its code in transformers: the checkpoint's own isn't asked for.
    if "auto_map" in raw and raw.get("model_type") not in FAMILIES:
        port = _PORTS.get(str(raw.get("model_type")), "a native port")
        raise ModelError(f"'{file}' has auto_map: the model needs remote code, which is never run; use {port}")
    require("transformers", "export")
    import transformers

    with below(
        f"reading '{file}' with transformers {transformers.__version__}",
        "it isn't a configuration that this release knows; is the file whole, and the release new enough?",
    ):
        config = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    _refuse_missing_parts(file, raw, config)
    return config


@contextlib.contextmanager
def reading(config: Any) -> Iterator[None]:
    """Turn what a family doesn't find in a configuration, or can't compute with, into one line.

    Raises:
        ModelError: Names the setting, as far as Python does.
    """
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, ArithmeticError) as error:
        raise ModelError(
            f"{CONFIG} of a '{config.model_type}' can't be understood ({said(error)}): a setting is missing, or isn't"
            " what this family has there; -v shows where it was read"
        ) from error


def _instead(directory: Path) -> str:
    """Say what a directory without config.json is."""
    if (directory / ADAPTER).is_file():
        base = read_json(directory / ADAPTER).get("base_model_name_or_path")
        return (
            f"it is a PEFT adapter of '{base or 'another model'}'; give that model as --model, and this directory as"
            " --adapter"
        )
    if not any(directory.iterdir()):
        return "it is empty; download a checkpoint into it"
    inside = sorted(path.parent.name for path in directory.glob(f"*/{CONFIG}"))
    return f"not a Hugging Face checkpoint{f'; did you mean its {inside[0]!r}?' if inside else ''}"


def _check_names(raw: Mapping[str, Any]) -> None:
    names, kind = raw.get("architectures"), raw.get("model_type")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"architectures is {shortened(names)}: expected a list of names")
    if kind is not None and not isinstance(kind, str):
        raise ValueError(f"model_type is {shortened(kind)}: expected a name")


def _refuse_original_llava(file: Path, raw: Mapping[str, Any]) -> None:
    names = raw.get("architectures") or []
    kind = next((name for name in _ORIGINAL_LLAVA if name in names), None)
    tower = raw.get("mm_vision_tower")
    if kind is None and tower is None:
        return
    width = raw.get("hidden_size")
    key = (kind or _ORIGINAL_LLAVA[0], width if isinstance(width, int) else 0, bool(raw.get("image_grid_pinpoints")))
    converted = _CONVERTED.get(key)
    raise ModelError(
        f"'{file}' is of original LLaVA ({kind or raw.get('model_type')}, its vision tower '{tower}' lies elsewhere):"
        f" take {f'{converted!r}, ' if converted else ''}the same model in transformers' layout, whose name ends in"
        " -hf"
    )


def _refuse_missing_parts(file: Path, raw: Mapping[str, Any], config: Any) -> None:
    """Refuse a file that says no sizes, which the class's defaults would fill in."""
    for part in _PARTS:
        if part not in raw and getattr(config, part, None) is not None and not _flat(raw, config, part):
            raise ModelError(
                f"'{file}' has no '{part}': the sizes of a '{config.model_type}' stand there; is it the right file?"
            )


def _flat(raw: Mapping[str, Any], config: Any, part: str) -> bool:
    """Return whether the family's older files had the text model's sizes beside everything else, and were read so."""
    found = getattr(config, part)
    return part == "text_config" and all(
        key in raw and raw[key] == getattr(found, key, None) for key in ("hidden_size", "num_hidden_layers")
    )
