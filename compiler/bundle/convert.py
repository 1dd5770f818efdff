"""JSON to frozen dataclasses and back, exactly: a number isn't a text, and what isn't a field is refused."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import cattrs
from cattrs.strategies import configure_union_passthrough

from lmmprune.limits import shortened

T = TypeVar("T")


def structure(raw: object, kind: type[T]) -> T:
    """Return a dataclass of what JSON says.

    Raises:
        ValueError: A field is missing, unknown or of another type; one line that names the first.
    """
    try:
        return _converter().structure(raw, kind)
    except (cattrs.BaseValidationError, TypeError, ValueError, KeyError, AttributeError) as error:
        faults = cattrs.transform_error(error) if isinstance(error, cattrs.BaseValidationError) else [repr(error)]
        raise ValueError(" ".join(faults[0].split())) from error
    except OverflowError as error:  # a whole number that is no float
        raise ValueError(str(error)) from error


def unstructure(value: object) -> Any:
    """Return what JSON can say of a dataclass."""
    return _converter().unstructure(value)


@functools.cache
def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    # cattrs would turn 5 into "5", and 2.7 into 2.
    for kind in (str, int, bool):
        converter.register_structure_hook(kind, _exactly(kind))
    converter.register_structure_hook(float, lambda value, _: float(_exactly(float, int)(value, float)))
    configure_union_passthrough(cast("Any", str | int | float | bool | None), converter)
    return converter


def _exactly(*kinds: type) -> Callable[[object, object], Any]:
    def take(value: object, _: object) -> object:
        if type(value) not in kinds:
            raise TypeError(f"expected {kinds[0].__name__}, found {shortened(value)}")
        return value

    return take
