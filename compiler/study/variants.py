"""Which variants of which methods a study measures: names, files of the user's, hyper-parameters, positions."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lmmprune.compiler.export.values import Schedule
from lmmprune.compiler.study.grid import Variant
from lmmprune.errors import InputError, suggestion
from lmmprune.passes.methods import find_methods, get_method

ALL = "all"
POSITIONS = ("contiguous", "original")

# (method, hyper-parameter) -> values, in the order in which they were given.
Options = Mapping[tuple[str, str], Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Variants:
    """The variants of a study, and where their code is.

    Attributes:
        chosen: In the order of the grid.
        files: Method -> file of the user's that defines it.
        schedules: What a schedule is called -> its file.
    """

    chosen: tuple[Variant, ...]
    files: Mapping[str, Path] = field(default_factory=dict)
    schedules: Mapping[str, Path] = field(default_factory=dict)


def parse_settings(pairs: Sequence[str]) -> Options:
    """Return what every ``--set NAME.option=value`` says.

    Raises:
        InputError: One isn't of that form.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for pair in pairs:
        left, equals, value = pair.partition("=")
        method, dot, name = left.rpartition(".")
        if not (equals and dot and method and name):
            raise InputError(f"--set {pair}: expected METHOD.option=value, such as fastv.layer=3")
        values = found.setdefault((method, name), [])
        if value in values:
            raise InputError(f"--set {pair} is given twice: leave one out")
        values.append(value)
    return found


def choose_variants(
    methods: Sequence[str] | None,
    defaults: Sequence[str],
    *,
    files: Sequence[Path] = (),
    options: Options | None = None,
    positions: Sequence[str] = (),
    schedules: Sequence[Path] = (),
) -> Variants:
    """Return every variant that was asked for: each method with every combination of the values of its options.

    Args:
        methods: Names; ``all`` among them takes every method there is; None: the defaults, and those of the files.
        defaults: Names.
        files: Python files that define methods.
        options: Hyper-parameters.
        positions: Of the tokens that stay; none: each method's own.
        schedules: JSON files, as ``export --schedule`` takes them, each one variant more of what can follow it.

    Raises:
        InputError: An unknown method, hyper-parameter or position, or a file that doesn't load.
    """
    owners = methods_of(files)
    digests = {name: file_digest(file) for name, file in owners.items()}
    known = sorted({*find_methods(), *owners})
    names = _names(methods, defaults, known, owners)
    given = options or {}
    for method, name in given:
        if method not in names:
            raise InputError(f"--set {method}.{name}: '{method}' isn't among the methods{suggestion(method, names)}")
    for one in positions:
        if one not in POSITIONS:
            raise InputError(f"--positions {one}: expected {' or '.join(POSITIONS)}, or both with a comma between")
    counts: dict[str, Schedule] = {}
    for file in dict.fromkeys(schedules):
        if file.stem in counts:
            raise InputError(f"--schedule {file}: another one is called '{file.stem}' too: rename one")
        counts[file.stem] = Schedule.read(file)
    chosen = []
    for method in names:
        own = {name: values for (owner, name), values in sorted(given.items()) if owner == method}
        for values in itertools.product(*own.values()):
            chosen_options = dict(zip(own, values, strict=True))
            get_method(method, chosen_options, file=owners.get(method))
            able = counts if get_method(method, chosen_options, file=owners.get(method)).movable else ()
            chosen += [
                Variant(
                    method=method,
                    options=tuple(chosen_options.items()),
                    positions=one,
                    code=digests.get(method),
                    schedule=None if name is None else (name, tuple(counts[name].counts.items())),
                )
                for one in dict.fromkeys(positions or (None,))
                for name in (None, *able)
            ]
    if counts and not any(variant.schedule for variant in chosen):
        raise InputError(
            f"--schedule: none of {', '.join(names)} can cut at any decoder layer: add one that can to --methods"
        )
    return Variants(
        chosen=tuple(chosen),
        files={name: owners[name] for name in names if name in owners},
        schedules={file.stem: file for file in schedules},
    )


def methods_of(files: Sequence[Path]) -> dict[str, Path]:
    """Return what each method that files define is defined by.

    Raises:
        InputError: A file doesn't load, or two define the same name.
    """
    installed = find_methods()
    owners: dict[str, Path] = {}
    for file in dict.fromkeys(files):
        for name in find_methods(file).keys() - installed.keys():
            if name in owners:
                raise InputError(f"--method-file {file}: it defines '{name}', and so does '{owners[name]}': rename one")
            owners[name] = file
    return owners


def file_digest(file: Path) -> str:
    """Return what tells a file's content from another's."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _names(
    methods: Sequence[str] | None, defaults: Sequence[str], known: Sequence[str], owners: Mapping[str, Path]
) -> list[str]:
    asked = [*defaults, *owners] if methods is None else list(methods)
    if not asked:
        raise InputError("--methods is empty: give names of methods, separated by commas (see 'lmmprune methods')")
    for name in asked:
        if name != ALL and name not in known:
            raise InputError(f"no method '{name}'{suggestion(name, known)}")
    return list(dict.fromkeys(one for name in asked for one in (known if name == ALL else (name,))))
