"""Import TensorRT or TensorRT-RTX, whichever serves a target, in a version that the target describes."""

from __future__ import annotations

from types import ModuleType

from packaging.version import Version

from lmmprune.compiler.backends.trt_log import one_line
from lmmprune.compiler.targets.target import Target
from lmmprune.errors import MissingExtraError, TargetError, require


def load(target: Target) -> ModuleType:
    """Import the builder of a target.

    Raises:
        MissingExtraError: The module isn't installed.
        TargetError: It is installed in a version that the target doesn't describe, or its libraries don't load.
    """
    try:
        trt = require(target.backend, target.extra)
    except MissingExtraError:
        raise
    except (ImportError, OSError, RuntimeError) as error:
        raise TargetError(
            f"{target.title} is installed but doesn't load ({one_line(str(error))}): "
            f"pip install --force-reinstall 'lmmprune[{target.extra}]'"
        ) from error
    if target.version is not None and not _within(trt.__version__, *target.version):
        raise TargetError(
            f"target '{target.name}' needs {target.title} {target.version[0]} up to (not including) "
            f"{target.version[1]}, installed is {trt.__version__}: choose the target of that version "
            "(see 'lmmprune targets') or install the other one"
        )
    return trt


def _within(version: str, first: str, end: str) -> bool:
    return Version(first) <= Version(version) < Version(end)
