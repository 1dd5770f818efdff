"""Aliases: the built-in configuration of each is its checkpoint's on the hub, and what was tried is listed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hub_configs import CONFIGS
from hub_layouts import LAYOUTS

from lmmprune.models.aliases import ALIASES
from lmmprune.models.registry import FAMILIES
from lmmprune.models.source import resolve

# Said of the file, of training, of a part that isn't there, or again.
_ASIDE = {
    "_name_or_path",
    "architectures",
    "dtype",
    "transformers_version",
    "vision_config.vocab_size",
    "text_config.rope_parameters.type",
    "text_config.tie_word_embeddings",
}


def _flat(config: dict[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{above}{key}"
        if isinstance(value, dict):
            found |= _flat(value, f"{name}.")
        elif not _ASIDE.intersection((key, name)):
            found[name] = list(value) if isinstance(value, tuple) else value
    return found


@pytest.mark.parametrize("name", [name for name, alias in ALIASES.items() if alias.config])
def test_an_alias_has_the_configuration_of_its_checkpoint(name: str) -> None:
    from transformers import AutoConfig

    raw = copy.deepcopy(CONFIGS[name])
    published = AutoConfig.for_model(raw.pop("model_type"), **raw)
    # Families settle things, such as the grid of tiles: here the bare configuration is wanted.
    built = AutoConfig.for_model(ALIASES[name].family, **copy.deepcopy(dict(ALIASES[name].config or {})))
    expected, found = _flat(published.to_dict()), _flat(built.to_dict())
    unlike = {key: (found.get(key), value) for key, value in expected.items() if found.get(key) != value}
    assert not unlike, "alias and hub"
    assert resolve(name, weights="dummy").family.name == published.model_type


def test_every_alias_is_compared() -> None:
    assert set(CONFIGS) == {name for name, alias in ALIASES.items() if alias.config}


def test_families_list_the_checkpoints_whose_layout_was_tried(cli: Callable[..., tuple[int, str, str]]) -> None:
    tried: dict[str, list[str]] = {name: [] for name in FAMILIES}
    for layout in LAYOUTS.values():
        if layout.served and layout.hub_id and layout.hub_id not in tried[layout.family]:
            tried[layout.family].append(layout.hub_id)
    assert {name: list(family.tried) for name, family in FAMILIES.items()} == tried
    code, out, _ = cli("models", "--json")
    assert code == 0
    assert {row["name"]: row["tried"] for row in json.loads(out)["families"]} == tried
    _, out, _ = cli("models")
    for names in tried.values():
        assert all(f"tried: {name}" in out for name in names)
