"""Methods from outside: of installed packages (entry point ``lmmprune.methods``), or of one Python file."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from lmmprune.errors import InputError
from lmmprune.passes.methods.method import Method

GROUP = "lmmprune.methods"


def from_packages() -> Iterator[type[Method]]:
    """Yield the methods of installed packages.

    Raises:
        InputError: An entry point doesn't load, or isn't a method.
    """
    for entry in importlib.metadata.entry_points(group=GROUP):
        try:
            found = entry.load()
        except Exception as error:  # somebody else's module: anything may happen on import
            raise InputError(
                f"the method '{entry.name}' of the installed package '{entry.dist and entry.dist.name}' doesn't load"
                f" ({type(error).__name__}: {error}): mend or uninstall it"
            ) from error
        yield _checked(found, f"entry point '{entry.name}' ({entry.value})")


def from_file(path: Path) -> list[type[Method]]:
    """Return the methods that a Python file defines. The file is executed: give only one that you trust.

    Raises:
        InputError: It isn't there, doesn't import, or defines no method.
    """
    if not path.is_file():
        raise InputError(f"--method-file {path}: there is no such file")
    found = [
        value
        for value in vars(_load(path)).values()
        if inspect.isclass(value) and issubclass(value, Method) and value.__module__ == _module_name(path)
    ]
    if not found:
        raise InputError(f"--method-file {path}: it defines no subclass of lmmprune.passes.methods.Method")
    return [_checked(method, f"class '{method.__name__}' in '{path}'") for method in found]


def _module_name(path: Path) -> str:
    return f"lmmprune_method_file_{path.stem}"


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(_module_name(path), path)
    if spec is None or spec.loader is None:
        raise InputError(f"--method-file {path}: not a Python file (its name must end in .py)")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up while they are made.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's own code: anything may happen on import
        del sys.modules[spec.name]
        where = error.lineno if isinstance(error, SyntaxError) else _line(error, path)
        raise InputError(f"--method-file {path}, line {where}: {type(error).__name__}: {error}") from error
    return module


def _line(error: BaseException, path: Path) -> int | None:
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _checked(found: object, where: str) -> type[Method]:
    if not (inspect.isclass(found) and issubclass(found, Method)):
        raise InputError(f"{where} isn't a subclass of lmmprune.passes.methods.Method")
    for name in ("name", "reference", "exactness"):
        if not isinstance(getattr(found, name, None), str):
            raise InputError(f'{where} states no {name}: write {name} = "..." in the class')
    try:
        found()
    except TypeError as error:
        raise InputError(
            f"{where} can't be made without arguments ({error}): give every hyper-parameter a default, and decorate it"
            " with @dataclass(frozen=True, kw_only=True)"
        ) from error
    return found
