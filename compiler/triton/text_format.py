"""Protocol buffers' text format, as much of it as ``config.pbtxt`` needs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

Value = object
"""A mapping (a message), a list (repeated), an ``Enum``, a str, a bool or an int."""


class Enum(str):
    """A name that stands without quotes."""


def to_text(message: Mapping[str, Value]) -> str:
    """Return a message in text format, a field a line."""
    return "\n".join(_field(name, value) for name, value in message.items()) + "\n"


def _field(name: str, value: Value, indent: str = "") -> str:
    if isinstance(value, Mapping):
        return f"{indent}{name} {_message(value, indent)}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        if any(isinstance(item, Mapping) for item in value):
            return "\n".join(_field(name, item, indent) for item in value)
        return f"{indent}{name}: [{', '.join(_scalar(item) for item in value)}]"
    return f"{indent}{name}: {_scalar(value)}"


def _message(fields: Mapping[str, Value], indent: str) -> str:
    lines = [_field(name, value, indent + "  ") for name, value in fields.items()]
    return "\n".join(["{", *lines, f"{indent}}}"])


def _scalar(value: Value) -> str:
    if isinstance(value, Enum):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    # JSON's escapes of ASCII text are all among those of the text format.
    return json.dumps(value) if isinstance(value, str) else str(value)
