"""Find a checkpoint's chat template where transformers looks for it, in its order.

1. ``chat_template`` in ``processor_config.json``
2. ``chat_template.json``
3. ``chat_template.jinja``, and ``additional_chat_templates/*.jinja`` by their names
4. ``chat_template`` in ``tokenizer_config.json``, which the processor doesn't read, but its tokenizer does

A file may hold several templates by name; the one called "default" is for conversations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmmprune.errors import ModelError
from lmmprune.models.read_json import read_json_if_there

_JINJA = "chat_template.jinja"
_LEGACY = "chat_template.json"
_FOLDER = "additional_chat_templates"


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """A template in jinja, and the file that it comes from."""

    text: str
    origin: str


def find_chat_template(origin: Path) -> ChatTemplate | None:
    """Return the chat template of a directory, None where it has none.

    Raises:
        ModelError: A file is damaged, or none of several templates is the default one.
    """
    for name in ("processor_config.json", _LEGACY):
        found = read_json_if_there(origin / name).get("chat_template")
        if found is not None:
            if name == _LEGACY and _extra(origin):
                raise ModelError(
                    f"'{origin}' has both {_LEGACY} and {_FOLDER}, which transformers refuses: remove {_LEGACY}, or"
                    " give the template with --template"
                )
            return _default(found, name)
    files = _extra(origin)
    if (origin / _JINJA).is_file():
        files["default"] = origin / _JINJA
    if files:
        where = _JINJA if "default" in files and files["default"].name == _JINJA else _FOLDER
        return _default({name: _read(path) for name, path in files.items()}, where)
    found = read_json_if_there(origin / "tokenizer_config.json").get("chat_template")
    return None if found is None else _default(found, "tokenizer_config.json")


def _default(found: Any, origin: str) -> ChatTemplate:
    """Take the default one of what stands in a file: a template, or several of them by name."""
    if isinstance(found, str):
        return ChatTemplate(text=found, origin=origin)
    named = found
    if isinstance(found, list) and all(
        isinstance(row, Mapping) and {"name", "template"} <= row.keys() for row in found
    ):
        named = {row["name"]: row["template"] for row in found}
    if not isinstance(named, Mapping) or not all(isinstance(text, str) for text in named.values()):
        raise ModelError(
            f"the chat template in {origin} is {type(found).__name__}, expected a text or several by name: give it"
            " with --template"
        )
    if "default" not in named:
        names = ", ".join(map(str, named)) or "none"
        raise ModelError(
            f"{origin} has chat templates by the names {names}, and none is called 'default': give one with --template"
        )
    return ChatTemplate(text=named["default"], origin=origin)


def _extra(origin: Path) -> dict[str, Path]:
    return {file.stem: file for file in sorted((origin / _FOLDER).glob("*.jinja"))}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"the chat template '{path}' can't be read ({error})") from error
