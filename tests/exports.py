"""Real exports, each made once per test session, by whichever of its processes asks first."""

from __future__ import annotations

import functools
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock
from hub_layouts.one_trace import one_trace
from short_request import short_request

from lmmprune.compiler.export.export import export
from lmmprune.compiler.export.request import Report
from lmmprune.compiler.export.trace import shared_trace

TRACED = shared_trace()
_ROOT = Path(os.environ["LMMPRUNE_TESTS"]) / "exports"


@functools.cache
def exported(**options: Any) -> tuple[Path, Report]:
    """Return a bundle of tiny-llava exported with these options; don't change it."""
    return _once("", export, options)


@functools.cache
def exported_again(**options: Any) -> tuple[Path, Report]:
    """Return such a bundle, or one of another ``model``, made from a trace that all of a process share: faster."""
    return _once("again-", functools.partial(export, traced=TRACED), options)


def _once(name: str, make: Callable[..., Report], options: dict[str, Any]) -> tuple[Path, Report]:
    given = {"model": "tiny-llava", **options, "options": dict(options.get("options", ()))}
    named = "-".join(f"{key}={value}" for key, value in sorted(options.items())) or "plain"
    folder = _ROOT / (name + re.sub(r"[/\\]+", "_", named))
    _ROOT.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        kept = Path(f"{folder}.report")
        if kept.is_file():
            report: Report = pickle.loads(kept.read_bytes())
        else:
            with one_trace():
                report = make(short_request(output=folder, force=True, **given))
            kept.write_bytes(pickle.dumps(report))
    return folder, report
