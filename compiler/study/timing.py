"""Time the cells of a study in one process, interleaved, always beside the unpruned model of the same precision."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmmprune.compiler.data.questions import Question
from lmmprune.compiler.measure.bench import bench, steps
from lmmprune.compiler.study.folder import Folder
from lmmprune.compiler.study.grid import FLOAT, Cell
from lmmprune.compiler.study.write_file import write_bytes, write_text
from lmmprune.compiler.targets import machine
from lmmprune.errors import BundleError
from lmmprune.limits import read_json

# Cells in memory at once, the unpruned ones among them: neighbours in a round shall be neighbours in time.
GROUP = 12

Samples = Mapping[str, Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class TimingSettings:
    """How it is timed: rounds that count, tokens per answer, threads within an operator (None: the back end's)."""

    rounds: int
    new_tokens: int
    threads: int | None


@dataclass(frozen=True, kw_only=True)
class Group:
    """Cells that were timed interleaved: cell name -> metric -> milliseconds of every round."""

    samples: Mapping[str, Samples]


def record_settings(settings: TimingSettings, question: Question) -> dict[str, Any]:
    """Return what must be equal for times to be used again: settings, picture, prompt and machine."""
    facts = machine.detect_machine()
    image = question.load().convert("RGB")
    return {
        **dataclasses.asdict(settings),
        "prompt": question.prompt,
        "picture": hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest(),
        "machine": f"{facts.processor}, {facts.cores} cores, {facts.system}",
    }


def load_groups(folder: Folder, record: Mapping[str, Any]) -> list[Group]:
    """Return the finished groups with these settings, the oldest first.

    Raises:
        BundleError: A file was edited.
    """
    groups = []
    for file in sorted((folder.path / "timing").glob("group-*.json")):
        try:
            row = read_json(file)
            if row["settings"] == dict(record):
                groups.append(Group(samples=row["samples"]))
        except (ValueError, KeyError, TypeError) as error:
            raise BundleError(f"'{file}' isn't a timing ({error}): delete it, and it is made again") from error
    return groups


def find_group(groups: Sequence[Group], cells: Sequence[Cell]) -> Group | None:
    """Return the youngest group in which all of these cells were timed together."""
    return next((group for group in reversed(groups) if {cell.name for cell in cells} <= group.samples.keys()), None)


def plan_groups(cells: Sequence[Cell], groups: Sequence[Group]) -> list[tuple[Cell, ...]]:
    """Return the groups that are still to be timed, so that every cell has been beside its baselines.

    All precisions of a method and ratio stay together, beside the unpruned model in the same precisions: that is what
    an interaction is computed from.

    Args:
        cells: All cells that can be timed, the unpruned ones among them.
        groups: What has been timed.
    """
    baselines = tuple(cell for cell in cells if cell.method is None)
    by_variant: dict[Cell, list[Cell]] = {}
    for cell in cells:
        if cell.method is not None:
            by_variant.setdefault(cell.at(FLOAT), []).append(cell)
    missing = [found for found in by_variant.values() if find_group(groups, (*baselines, *found)) is None]
    planned: list[tuple[Cell, ...]] = []
    room: list[Cell] = []
    for variant in missing:
        if room and len(baselines) + len(room) + len(variant) > GROUP:
            planned.append((*baselines, *room))
            room = []
        room += variant
    if room or (not missing and find_group(groups, baselines) is None):
        planned.append((*baselines, *room))
    return planned


def count_steps(planned: Sequence[Sequence[Cell]], settings: TimingSettings) -> int:
    """Return how many times ``time_groups`` reports a step."""
    return sum(steps(len(cells), settings.rounds, memory=False) for cells in planned)


def time_groups(
    folder: Folder,
    planned: Sequence[Sequence[Cell]],
    settings: TimingSettings,
    question: Question,
    on_step: Callable[[str], None],
) -> Iterator[Group]:
    """Time every group and leave it on disk before the next one.

    Args:
        folder: The study, with the bundles of these cells.
        planned: As ``plan_groups`` says.
        settings: How.
        question: What every variant is asked.
        on_step: Called before every step.

    Raises:
        LmmpruneError: A bundle can't be loaded here.
    """
    record = record_settings(settings, question)
    picture = folder.path / "timing" / "picture.png"
    _save_picture(question, picture)
    for cells in planned:
        report = bench(
            [folder.bundle(cell) for cell in cells],
            picture,
            question.prompt,
            rounds=settings.rounds,
            new_tokens=settings.new_tokens,
            threads=settings.threads,
            memory=False,
            on_step=on_step,
        )
        group = Group(samples={row.name: row.samples for row in report.rows})
        number = 1 + max((int(file.stem.split("-")[1]) for file in picture.parent.glob("group-*.json")), default=0)
        text = json.dumps({"settings": record, "samples": group.samples})
        write_text(picture.parent / f"group-{number:04}.json", text + "\n")
        yield group


def _save_picture(question: Question, file: Path) -> None:
    buffer = io.BytesIO()
    question.load().convert("RGB").save(buffer, format="PNG")
    write_bytes(file, buffer.getvalue())
