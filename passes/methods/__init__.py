"""The pruning methods, by name: those of this folder, of other packages, and of a file of the user's.

A method is one file: whatever subclass of ``Method`` a module of this folder defines is found.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from lmmprune.errors import InputError, suggestion
from lmmprune.passes.methods.foreign import from_file, from_packages
from lmmprune.passes.methods.guard import blamed, check_plain, guarded
from lmmprune.passes.methods.method import Method, keep_count

__all__ = ["METHODS", "Method", "find_methods", "get_method", "keep_count"]


def _built_in() -> Iterator[type[Method]]:
    for entry in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{entry.name}")
        for value in vars(module).values():
            own = inspect.isclass(value) and value.__module__ == module.__name__
            if own and issubclass(value, Method) and value is not Method:
                yield value


METHODS: dict[str, type[Method]] = {
    method.name: method for method in sorted(_built_in(), key=lambda method: method.name)
}


def find_methods(file: Path | None = None) -> dict[str, type[Method]]:
    """Return all methods by name: built in, of installed packages, and of a file.

    Raises:
        InputError: One of them doesn't load, or takes a name that is taken.
    """
    found = dict(METHODS)
    for method in (*from_packages(), *(from_file(file) if file is not None else ())):
        if method.name in found and found[method.name] is not method:
            raise InputError(f"two methods are called '{method.name}': rename the one in '{method.__module__}'")
        found[method.name] = method
    return found


def get_method(name: str | Method, options: Mapping[str, str] | None = None, *, file: Path | None = None) -> Method:
    """Return a method by name, with some hyper-parameters given as text.

    Args:
        name: Its name, or the method itself, which has its hyper-parameters already.
        options: Hyper-parameter -> value as text.
        file: A Python file that defines more methods.

    Raises:
        InputError: Unknown name or option, or a foreign method that doesn't load.
    """
    if isinstance(name, Method):
        if options or file:
            raise InputError(
                f"the method '{name.name}' is given itself, and {'options' if options else 'a file'} beside it: "
                f"give the options to {type(name).__name__}, or the method by its name"
            )
        guarded(type(name))
        check_plain(name)
        return name
    known = find_methods(file)
    if name not in known:
        raise InputError(f"no method '{name}'{suggestion(name, known)}")
    with blamed(known[name], "its options", "hyper-parameters that it takes"):
        return known[name].with_options(options or {})
