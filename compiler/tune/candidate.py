"""One way to prune and quantize a model: what is measured, and the command that makes it."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from lmmprune.compiler.export.request import Request
from lmmprune.compiler.export.values import Int8, Ratio, Schedule
from lmmprune.compiler.study.variants import methods_of
from lmmprune.errors import InputError, suggestion
from lmmprune.passes.methods import find_methods

POSITIONS = ("original", "contiguous")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A variant of the model.

    Attributes:
        method: What prunes; None for the unpruned model.
        ratio: Fraction of visual tokens removed.
        options: Hyper-parameters that aren't the method's defaults, as text.
        positions: How kept tokens are numbered.
        int8: ``all`` or ``auto``, as ``--int8-policy`` takes it; None: floating point.
        schedule: (site, tokens that leave it), in place of the ratio.
        method_file: What defines the method; None: it is installed.
    """

    method: str | None = None
    ratio: float = 0.0
    options: tuple[tuple[str, str], ...] = ()
    positions: str = POSITIONS[0]
    int8: str | None = None
    schedule: tuple[tuple[str, int], ...] = ()
    method_file: Path | None = None

    @property
    def label(self) -> str:
        """A name for people: ``fastv layer=16 50 % contiguous int8``."""
        if self.method is None:
            return "unpruned" + " int8" * bool(self.int8)
        amount = "schedule" if self.schedule else f"{100 * self.ratio:.4g} %"
        words = [self.method, *(f"{name}={value}" for name, value in self.options), amount]
        words += [self.positions] * (self.positions != POSITIONS[0])
        return " ".join([*words, *(["int8"] if self.int8 else [])])

    @property
    def name(self) -> str:
        """A name for a file, unique among candidates."""
        kept = "-".join(f"{site.rsplit('_', 1)[-1]}.{count}" for site, count in self.schedule)
        return re.sub(r"%20+", "-", quote(self.label.replace(" %", ""), safe="+=,")) + (f"-{kept}" if kept else "")

    def request(self, template: Request, output: Path) -> Request:
        """Return what ``export`` is asked for; ``template`` says of what model, and for what target."""
        return dataclasses.replace(
            template,
            output=output,
            method=self.method or Request.method,
            method_file=self.method_file,
            options=dict(self.options),
            tokens=Schedule(dict(self.schedule)) if self.schedule else Ratio(self.ratio),
            positions=self.positions if self.method else None,
            int8=Int8(policy=self.int8) if self.int8 else None,
            calibration=template.calibration if self.int8 else None,
            judge=False,  # that is what the run is for
            force=True,  # the run's own, of a run that was killed
        )

    def command(self, template: Request, schedule: Path | None = None) -> str:
        """Return the line that exports it; ``schedule`` is the file of its schedule, where it has one."""
        words = ["lmmprune", "export", "--model", template.model]
        words += ["--weights", template.weights] * (template.weights != Request.weights)
        words += ["--layers", str(template.layers)] * (template.layers is not None)
        if self.method is not None:
            words += ["--method", self.method]
            words += [] if self.method_file is None else ["--method-file", str(self.method_file)]
            words += ["--schedule", str(schedule)] if self.schedule else ["--ratio", f"{self.ratio:g}"]
            words += [part for name, value in self.options for part in ("--set", f"{name}={value}")]
            words += ["--positions", self.positions]
        if self.int8:
            words += ["--int8", *(["--int8-policy", "auto"] * (self.int8 == "auto"))]
            words += ["--calib", str(template.calibration)] if template.calibration else []
        return shlex.join([*words, *(["--target", template.target] * (template.target != Request.target)), "-o", "out"])


def candidates(
    methods: Sequence[str],
    ratios: Sequence[float],
    positions: Sequence[str],
    int8: str | None,
    files: Sequence[Path] = (),
) -> tuple[Candidate, ...]:
    """Return all candidates: method x its hyper-parameters x ratio x positions x precision.

    Args:
        methods: Names, or ``all``; those that the files define are tried, too.
        ratios: Fractions removed, each ``0 < ratio < 1``.
        positions: Of ``POSITIONS``.
        int8: As in ``Candidate``; None: floating point only.
        files: Python files that define methods.

    Raises:
        InputError: Something isn't known, or there is nothing to try.
    """
    known = dict(find_methods())
    names = list(known) if list(methods) == ["all"] else list(dict.fromkeys(methods))
    owners = methods_of(files)
    known |= {name: find_methods(file)[name] for name, file in owners.items()}
    names += [name for name in owners if name not in names]
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"--methods: no method '{unknown[0]}'{suggestion(unknown[0], known)}")
    if wrong := [word for word in positions if word not in POSITIONS]:
        raise InputError(f"--positions {wrong[0]}: expected {' or '.join(POSITIONS)}")
    if wrong_ratios := [ratio for ratio in ratios if not 0 < ratio < 1]:
        raise InputError(f"--ratios {wrong_ratios[0]:g}: give fractions that are removed, 0 < ratio < 1")
    if not names or not ratios or not positions:
        raise InputError("nothing to try: give --methods, --ratios and --positions at least one value each")
    precisions = (None, int8) if int8 else (None,)
    return tuple(
        Candidate(
            method=name, ratio=ratio, options=options, positions=place, int8=precision, method_file=owners.get(name)
        )
        for name in names
        for options in _options(known[name].tunable)
        for ratio in sorted(set(ratios))
        for place in dict.fromkeys(positions)
        for precision in precisions
    )


def _options(tunable: Sequence[tuple[str, str]]) -> Iterator[tuple[tuple[str, str], ...]]:
    """Yield the method's defaults, and each other value by itself."""
    yield ()
    for pair in tunable:
        yield (pair,)
