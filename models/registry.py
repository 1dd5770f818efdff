"""The models and families that are known by name, and how a ``--model`` argument becomes a directory."""

from __future__ import annotations

import re
from pathlib import Path

from lmmprune.errors import ModelError, require, suggestion
from lmmprune.limits import is_directory, is_file
from lmmprune.models import private_names
from lmmprune.models.aliases import ALIASES
from lmmprune.models.families import (
    idefics3,
    internvl,
    llava,
    llava_next,
    llava_onevision,
    qwen2_5_vl,
    qwen2_vl,
    qwen3_vl,
)
from lmmprune.models.family import Family
from lmmprune.models.hub import fetch as fetch  # beside locate, whose other half it is

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        llava.FAMILY,
        llava_next.FAMILY,
        llava_onevision.FAMILY,
        idefics3.FAMILY,
        idefics3.SMOLVLM,
        internvl.FAMILY,
        qwen2_vl.FAMILY,
        qwen2_5_vl.FAMILY,
        qwen3_vl.FAMILY,
    )
}

# A revision may follow: a branch, a tag or a commit.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")


def tiny_llava_dir() -> Path:
    """Return the directory of the small trained model that ships with the package."""
    return Path(__file__).parent / "tiny_llava"


def family_of(model_type: str) -> Family:
    """Return the family that serves a ``model_type``.

    Raises:
        ModelError: No family serves it; says what kind of model it is.
    """
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    known = ", ".join(sorted(FAMILIES))
    require("transformers", "export")
    if private_names.serves_pictures(model_type):
        raise ModelError(
            f"model_type '{model_type}' has no family here (there are: {known}): missing is a module that says where"
            " its vision tower, projector and decoder are, as models/families/llava.py does"
        )
    if private_names.serves_text(model_type):
        raise ModelError(
            f"model_type '{model_type}' is a language model alone, without visual tokens to prune: give a multimodal"
            f" model ({known})"
        )
    raise ModelError(
        f"model_type '{model_type}' has no family here (there are: {known}): expected a multimodal model that answers"
        " in text; a vision tower alone is pruned in its ONNX file, with 'lmmprune rewrite'"
    )


def locate(model: str) -> Path | str:
    """Turn a ``--model`` argument into a local directory, or a hub id that must be fetched first.

    Raises:
        ModelError: It is neither a directory, nor an alias, nor shaped like a hub id.
    """
    if model == "tiny-llava":
        return tiny_llava_dir()
    if model in ALIASES:
        return ALIASES[model].hub_id or model
    path = Path(model)
    if is_directory(path):
        return path
    if is_file(path):
        raise ModelError(f"'{model}' is a file: give the directory that holds config.json")
    if _HUB_ID.fullmatch(model) and not model.startswith("."):
        return model
    if "/" in model:
        raise ModelError(
            f"there is no directory '{model}', and no model of the hub can be called so (owner/name): give a directory"
            " that holds config.json, or see 'lmmprune models'"
        )
    raise ModelError(f"no model '{model}': not a directory, an alias or a hub id{suggestion(model, ALIASES)}")
