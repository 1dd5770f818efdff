"""Methods from outside: of installed packages (entry point ``lmmprune.methods``), or of one Python file."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from lmmprune.errors import InputError, said
from lmmprune.limits import shortened
from lmmprune.passes.find.sites import Site
from lmmprune.passes.methods.guard import blamed, check_plain, guarded
from lmmprune.passes.methods.method import Method

GROUP = "lmmprune.methods"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,59}")
_TEXT, _SWITCH = ((str,), "a text"), ((bool,), "True or False")
_STATED: dict[str, tuple[tuple[type, ...], str]] = {
    "name": ((str,), "up to 60 letters, digits and -, . or _"),
    **dict.fromkeys(("reference", "exactness", "sites", "positions"), _TEXT),
    "site": ((Site,), "one of lmmprune.passes.find.sites"),
    "epsilon": ((float, int), "a number"),
    **dict.fromkeys(("redundancy", "needs_cls", "next_layer", "scores_ahead"), _SWITCH),
}
"""What a class says of itself, by attribute: types, and what they are in words."""


def from_packages() -> Iterator[type[Method]]:
    """Yield the methods of installed packages.

    Raises:
        InputError: An entry point doesn't load, or isn't a method.
    """
    for entry in importlib.metadata.entry_points(group=GROUP):
        try:
            found = entry.load()
        except BaseException as error:  # somebody else's module: anything may happen on import, also an exit
            raise InputError(
                f"the method '{entry.name}' of the installed package '{entry.dist and entry.dist.name}' doesn't load"
                f" ({said(error)}): mend or uninstall it"
            ) from error
        yield _checked(found, f"entry point '{entry.name}' ({entry.value})")


def from_file(path: Path) -> list[type[Method]]:
    """Return the methods that a Python file defines. The file is executed: give only one that you trust.

    Raises:
        InputError: It isn't there, doesn't import, or defines no method.
    """
    if "\0" in str(path) or not path.is_file():
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
    except BaseException as error:  # the user's own code: anything may happen on import, also an exit
        del sys.modules[spec.name]
        where = error.lineno if isinstance(error, SyntaxError) else _line(error, path)
        raise InputError(f"--method-file {path}, line {where}: {said(error)}; mend the file") from error
    return module


def _line(error: BaseException, path: Path) -> int | None:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return lines[-1] if lines else None


def _checked(found: object, where: str) -> type[Method]:
    if not (inspect.isclass(found) and issubclass(found, Method)):
        raise InputError(f"{where} isn't a subclass of lmmprune.passes.methods.Method")
    for name, (kinds, words) in _STATED.items():
        value = inspect.getattr_static(found, name, None)
        if name in ("name", "reference", "exactness") and not isinstance(value, str):
            raise InputError(f'{where} states no {name}: write {name} = "..." in the class')
        if not isinstance(value, kinds) or (name == "name" and not _NAME.fullmatch(str(value))):
            raise InputError(f"{where} states {name} = {shortened(value)}: expected {words}")
    for name in ("positions", "published_positions"):
        if getattr(found, name) not in ("original", "contiguous", *([None] * (name == "published_positions"))):
            raise InputError(
                f"{where} states {name} = {shortened(getattr(found, name))}: expected original or contiguous"
            )
    with blamed(found, "made without arguments", "a default for every hyper-parameter, and @dataclass(frozen=True)"):
        method = found()
    check_plain(method)
    return guarded(found)
