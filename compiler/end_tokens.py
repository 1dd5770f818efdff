"""The tokens that end an answer, from where transformers' ``generate`` takes them."""

from __future__ import annotations

from pathlib import Path

from lmmprune.compiler.read_json import read_json_if_there
from lmmprune.errors import ModelError


def end_tokens(origin: Path) -> tuple[int, ...]:
    """Return the ids of the end tokens.

    Raises:
        ModelError: No file names one.
    """
    places = [read_json_if_there(origin / name) for name in ("generation_config.json", "config.json")]
    for place in [*places, *(place.get("text_config", {}) for place in places)]:
        end = place.get("eos_token_id")
        if end is not None:
            return tuple(int(token) for token in end) if isinstance(end, list) else (int(end),)
    raise ModelError(f"no eos_token_id in generation_config.json or config.json of '{origin}': answers would never end")
