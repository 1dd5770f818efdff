"""The pruning methods, by name."""

from __future__ import annotations

from lmmprune.errors import InputError, suggestion
from lmmprune.passes.methods.baselines import Random, Uniform
from lmmprune.passes.methods.cls import Cls
from lmmprune.passes.methods.freepruner import FreePruner
from lmmprune.passes.methods.method import Method, keep_count

METHODS: dict[str, type[Method]] = {method.name: method for method in (FreePruner, Cls, Random, Uniform)}

__all__ = ["METHODS", "Method", "get_method", "keep_count"]


def get_method(name: str, options: dict[str, str] | None = None) -> Method:
    """Return a method by name, with some hyper-parameters given as text.

    Raises:
        InputError: Unknown name or option.
    """
    if name not in METHODS:
        raise InputError(f"no method '{name}'{suggestion(name, METHODS)}")
    return METHODS[name].with_options(options or {})
