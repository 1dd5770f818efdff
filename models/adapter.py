"""A PEFT LoRA adapter, merged into the weights while they are read: ``W + scale * B @ A``, one matrix at a time.

Reference: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, arXiv 2106.09685; the scale
``alpha / sqrt(r)``: Kalajdzievski, rsLoRA, 2023, arXiv 2312.03732.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmmprune.errors import ModelError
from lmmprune.models import shards
from lmmprune.models.config_file import ADAPTER
from lmmprune.models.private_names import ties
from lmmprune.models.read_json import read_json
from lmmprune.stored import Array, Stored

WEIGHTS = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_PAIR = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.weight)?")
# Settings under which merging is more than one product: name -> what a plain LoRA has there.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "use_qalora": (False, None),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []),
    # The others change the base model's weights when training begins.
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}
_ROWS = 1024
"""Rows of a matrix that are changed in one go, so that the product takes little memory."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """What is added to one weight: ``scale * B [o,r] @ A [r,i]``, transposed where ``transposed``, in its shape."""

    a: Stored
    b: Stored
    scale: float
    transposed: bool

    def apply(self, weight: Array) -> Array:
        """Return the weight with the product added, float32.

        Raises:
            ModelError: The factors are of other sizes than the weight.
        """
        result = weight.astype(np.float32)
        a, b = (factor.read().astype(np.float32) for factor in (self.a, self.b))
        a, b = a.reshape(len(a), -1), b.reshape(b.shape[0], -1)
        if self.transposed:
            a, b = b.T, a.T
        rows = result.reshape(result.shape[0], -1)
        if b.shape[0] != rows.shape[0] or a.shape[1] != rows.shape[1] or a.shape[0] != b.shape[1]:
            raise ModelError(
                f"'{self.a.name}' {list(self.a.shape)} and '{self.b.name}' {list(self.b.shape)} don't fit a weight of"
                f" {list(weight.shape)}: was the adapter trained on another model?"
            )
        for row in range(0, len(rows), _ROWS):
            rows[row : row + _ROWS] += np.float32(self.scale) * (b[row : row + _ROWS] @ a)
        return result


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter by the names of the module's parameters.

    Attributes:
        directory: Where it lies.
        updates: Parameter -> what is added to it.
        replaced: Parameter -> what stands in its place (modules that were trained whole).
    """

    directory: Path
    updates: Mapping[str, Update]
    replaced: Mapping[str, Stored]

    @staticmethod
    def read(directory: Path, model: Any, rename: Callable[[str], str]) -> Adapter:
        """Read an adapter's settings and find what each of its tensors belongs to; no values are read.

        Args:
            directory: With ``adapter_config.json`` and ``adapter_model.safetensors``.
            model: The module, its parameters may be fake; what is tied is tied.
            rename: From a checkpoint's name of a tensor to the module's.

        Raises:
            ModelError: It isn't a plain LoRA, or wasn't trained on this model.
        """
        config = read_settings(directory)
        factors: dict[tuple[str, bool], dict[str, Stored]] = {}
        replaced: dict[str, Stored] = {}
        for key, entry in shards.entries(directory, WEIGHTS).items():
            plain = key.removeprefix(_PREFIX)
            pair = _PAIR.fullmatch(plain)
            if pair:
                factors.setdefault((pair[1], bool(pair[2])), {})[pair[3]] = entry
            else:
                replaced[rename(plain.replace(".base_layer.", "."))] = entry
        updates = {}
        for (module, embedding), pair_of in factors.items():
            if set(pair_of) != {"A", "B"}:
                raise ModelError(f"'{directory}' has one factor of '{module}' only: download the adapter again")
            scale = _scale(config, module, pair_of["A"].shape[0])
            updates[rename(f"{module}.weight")] = Update(
                a=pair_of["A"], b=pair_of["B"], scale=scale, transposed=embedding
            )
        adapter = Adapter(directory=directory, updates=updates, replaced=replaced)
        adapter.check(model)
        return adapter

    def check(self, model: Any) -> None:
        """Refuse an adapter of another model, and one that changes one of two tied weights."""
        wanted = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
        named = [*self.updates, *self.replaced]
        lost = [name for name in named if name not in wanted]
        if lost:
            raise ModelError(
                f"the adapter '{self.directory}' changes '{lost[0]}' (and {len(lost) - 1} more of {len(named)}), which"
                " this model doesn't have: was it trained on another one?"
            )
        for name, entry in self.replaced.items():
            if entry.shape != wanted[name]:
                raise ModelError(
                    f"the adapter '{self.directory}' brings '{name}' of shape {list(entry.shape)}, the model has"
                    f" {list(wanted[name])}: resize the model first, as for training, and save it"
                )
        tied = [pair for pair in ties(model).items() if set(pair) & set(named)]
        if tied:
            raise ModelError(
                f"the adapter '{self.directory}' changes '{tied[0][0]}' or '{tied[0][1]}', which are one in this model:"
                " merge it with PEFT (merge_and_unload) and save the result"
            )


def read_settings(directory: Path) -> dict[str, Any]:
    """Read ``adapter_config.json``.

    Raises:
        ModelError: It isn't there, isn't JSON, or isn't of a plain LoRA.
    """
    file = directory / ADAPTER
    if not file.is_file():
        raise ModelError(f"no {ADAPTER} in '{directory}': --adapter takes a directory that PEFT saved")
    config = read_json(file)
    if not (directory / WEIGHTS).is_file():
        pickled = (directory / "adapter_model.bin").is_file()
        raise ModelError(
            f"no {WEIGHTS} in '{directory}'"
            + (": it is pickled (adapter_model.bin), which is never loaded; save it again with a recent PEFT" * pickled)
        )
    for name, plain in _PLAIN.items():
        if config.get(name) not in plain:
            raise ModelError(
                f"'{file}' has {name} {json.dumps(config.get(name))}: expected a plain LoRA; merge it with PEFT"
                " (merge_and_unload), save the result, and give that as --model"
            )
    if config.get("fan_in_fan_out"):
        raise ModelError(f"'{file}' has fan_in_fan_out, for weights that lie transposed: this model's don't")
    return config


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Return the factor on a module's product; its rank is that of the tensors, which patterns may change."""
    alpha = config.get("lora_alpha", 8)
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    if not isinstance(alpha, (int, float)) or rank < 1:
        raise ModelError(f"the adapter's lora_alpha of '{module}' is {alpha!r} at rank {rank}: expected numbers")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
