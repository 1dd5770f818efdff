"""Hyper-parameters given as text: each is read as the type of its field says."""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any

from lmmprune.errors import InputError, suggestion

_SWITCH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_NONE = "none"
_SAMPLES = {int: "2,6,15", float: "0.25,0.5", bool: "true,false"}


def parse_options(method: type[Any], options: Mapping[str, str]) -> dict[str, Any]:
    """Return hyper-parameters of a method as values.

    Args:
        method: A dataclass with a ``name``.
        options: Field -> value as text: ``true`` or ``false``, a number, a text, ``none`` where the field may be None,
            and a list such as ``2,6,15`` for a tuple.

    Raises:
        InputError: Unknown names or values of another type, all of them in one line.
    """
    fields = {field.name: field for field in dataclasses.fields(method)}
    values: dict[str, Any] = {}
    wrong: list[str] = []
    for name, text in options.items():
        if name not in fields:
            known = suggestion(name, fields) if fields else "; it has none"
            wrong.append(f"method '{method.name}' has no option '{name}'{known}")
            continue
        kind = field_type(method, fields[name])
        try:
            values[name] = _read(text, kind)
        except ValueError:
            wrong.append(f"--set {name}={text}: expected {kind_name(kind)}")
    if wrong:
        raise InputError("; ".join(part.removesuffix("?") for part in wrong) + "?" * wrong[-1].endswith("?"))
    return values


def field_type(method: type[Any], field: dataclasses.Field[Any]) -> Any:
    """Return the type that a field is annotated with.

    Raises:
        InputError: The annotation names what its module doesn't have.
    """
    owner = next(cls for cls in method.__mro__ if field.name in getattr(cls, "__annotations__", {}))
    written = types.SimpleNamespace(__annotations__={field.name: field.type})
    try:
        return typing.get_type_hints(written, vars(sys.modules[owner.__module__]))[field.name]
    except (NameError, AttributeError, TypeError) as error:
        raise InputError(
            f"method '{method.name}': the type of its option '{field.name}' can't be told ({error}): import what it"
            " names at the top of the method's file"
        ) from error


def kind_name(kind: Any) -> str:
    """Say what a type takes, as one who types it needs to know."""
    if kind is bool:
        return "true or false"
    if _is_tuple(kind):
        inner = _items(kind)
        if inner is None:
            return f"a list such as {_SAMPLES.get(typing.get_args(kind)[0], 'a,b')}"
        return f"{len(inner)} values, separated by commas"
    choices = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(map(str, choices))
    if _is_union(kind):
        return " or ".join(_NONE if one is types.NoneType else kind_name(one) for one in choices)
    return getattr(kind, "__name__", str(kind))


def _read(text: str, kind: Any) -> Any:
    """Return a text as a value of a type.

    Raises:
        ValueError: It isn't one.
    """
    if kind is bool:
        return _one_of(text.strip().lower(), _SWITCH)
    if kind is str:
        return text
    if kind in (int, float):
        return kind(text)
    if kind is types.NoneType:
        return _one_of(text.strip().lower(), {_NONE: None})
    if _is_tuple(kind):
        return _tuple(text, kind)
    choices = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return _one_of(text, {str(choice): choice for choice in choices})
    if _is_union(kind):
        # A text takes everything: it is tried last.
        return _first(text, sorted(choices, key=lambda one: (one is not types.NoneType, one is str)))
    raise ValueError(f"--set has no text for {kind}")


def _one_of(text: str, known: Mapping[str, Any]) -> Any:
    if text not in known:
        raise ValueError(text)
    return known[text]


def _first(text: str, kinds: list[Any]) -> Any:
    for kind in kinds:
        try:
            return _read(text, kind)
        except ValueError:
            continue
    raise ValueError(text)


def _tuple(text: str, kind: Any) -> tuple[Any, ...]:
    parts, inner = text.split(","), _items(kind)
    kinds = [typing.get_args(kind)[0]] * len(parts) if inner is None else inner
    if len(parts) != len(kinds):
        raise ValueError(text)
    return tuple(_read(part, one) for part, one in zip(parts, kinds, strict=True))


def _items(kind: Any) -> list[Any] | None:
    """Return the types of a tuple's items; None: any number of one type."""
    inner = typing.get_args(kind)
    return None if len(inner) == 2 and inner[1] is Ellipsis else list(inner)


def _is_tuple(kind: Any) -> bool:
    return typing.get_origin(kind) is tuple


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)
