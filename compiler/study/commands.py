"""The command lines that make a study again, and one variant of it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping

from lmmprune.compiler.export.request import Request
from lmmprune.compiler.study.grid import Cell
from lmmprune.compiler.study.request import StudyRequest
from lmmprune.compiler.study.settings import Settings
from lmmprune.compiler.study.variants import Variants

_WORDS: Mapping[str, list[str]] = {
    "fp": [],
    "int8": ["--int8"],
    "int4": ["--int4"],
    "int4-gptq": ["--int4", "--int4-method", "gptq"],
}
"""What ``export`` calls a precision."""


def calibrated(precisions: Iterable[str]) -> bool:
    """Return whether samples are run for any of these precisions."""
    return bool({"int8", "int4-gptq"} & set(precisions))


def export_command(cell: Cell, settings: Settings, variants: Variants) -> str:
    """Return what exports a cell's bundle, into a folder of its name."""
    words = ["lmmprune", "export", "--model", settings.model]
    if cell.method is not None:
        words += ["--method", cell.method]
        words += ["--ratio", repr(cell.ratio)] if cell.schedule is None else []
        words += ["--schedule", str(variants.schedules[cell.schedule[0]])] if cell.schedule else []
        words += ["--method-file", str(variants.files[cell.method])] if cell.code else []
        words += [word for option, value in cell.options for word in ("--set", f"{option}={value}")]
        words += ["--positions", cell.positions] if cell.positions else []
    words += _WORDS[cell.precision]
    words += _calibration(settings) if calibrated([cell.precision]) else []
    words += ["--target", settings.target] if settings.target != Request.target else []
    return shlex.join([*words, "-o", cell.name])


def study_command(request: StudyRequest) -> str:
    """Return what measures the same again."""
    settings, variants = request.settings, request.variants
    options = dict.fromkeys((v.method, name, value) for v in variants.chosen for name, value in v.options)
    positions = dict.fromkeys(v.positions for v in variants.chosen if v.positions)
    words = ["lmmprune", "study", "--model", settings.model, "--data", settings.data]
    words += [word for prompt in settings.prompts for word in ("--prompt", prompt)]
    words += ["--limit", str(settings.limit)] if settings.limit else []
    words += ["--max-new-tokens", str(settings.max_new_tokens)]
    words += ["--methods", ",".join(dict.fromkeys(variant.method for variant in variants.chosen))]
    words += [word for file in dict.fromkeys(variants.files.values()) for word in ("--method-file", str(file))]
    words += [word for method, name, value in options for word in ("--set", f"{method}.{name}={value}")]
    words += ["--positions", ",".join(positions)] if positions else []
    words += [word for file in variants.schedules.values() for word in ("--schedule", str(file))]
    words += ["--ratios", ",".join(f"{ratio:g}" for ratio in request.ratios)]
    words += ["--precisions", ",".join(request.precisions)] if len(request.precisions) > 1 else []
    words += _calibration(settings) if calibrated(request.precisions) else []
    words += ["--target", settings.target] if settings.target != Request.target else []
    if request.timing is None:
        words += ["--no-timing"]
    else:
        words += ["--rounds", str(request.timing.rounds), "--new-tokens", str(request.timing.new_tokens)]
        words += ["--threads", str(request.timing.threads)] if request.timing.threads else []
    words += ["--max-loss", f"{request.max_loss:g}"] if request.max_loss is not None else []
    return shlex.join([*words, "-o", str(request.output)])


def _calibration(settings: Settings) -> list[str]:
    words = ["--calib", str(settings.calibration)] if settings.calibration else []
    if settings.calibration_samples != Request.calibration_samples:
        words += ["--calib-samples", str(settings.calibration_samples)]
    return words
