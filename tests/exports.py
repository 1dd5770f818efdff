"""Real exports of tiny-llava, each made once per test session."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

from short_request import short_request

from lmmprune.compiler.export.export import export
from lmmprune.compiler.export.request import Report
from lmmprune.models.canonical import shared_trace

_TRACED = shared_trace()
_ROOT = tempfile.TemporaryDirectory(prefix="lmmprune-tests-")


@functools.cache
def exported(**options: Any) -> tuple[Path, Report]:
    """Return a bundle of tiny-llava exported with these options; don't change it."""
    folder = Path(_ROOT.name) / ("-".join(f"{key}={value}" for key, value in sorted(options.items())) or "plain")
    given = {**options, "options": dict(options.get("options", ()))}
    return folder, export(short_request(model="tiny-llava", output=folder, force=True, **given))


@functools.cache
def exported_again(**options: Any) -> tuple[Path, Report]:
    """Return such a bundle, made from a trace that all of them share: ten times faster."""
    folder = Path(_ROOT.name) / ("again-" + "-".join(f"{key}={value}" for key, value in sorted(options.items())))
    given = {**options, "options": dict(options.get("options", ()))}
    return folder, export(short_request(model="tiny-llava", output=folder, force=True, **given), traced=_TRACED)
