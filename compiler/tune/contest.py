"""The race among candidates, the search for a schedule, and the final numbers of those that are left."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lmmprune.compiler.data.questions import Question
from lmmprune.compiler.measure.statistics import speedup
from lmmprune.compiler.study.write_file import write_text
from lmmprune.compiler.tune.budget import Budget
from lmmprune.compiler.tune.candidate import Candidate
from lmmprune.compiler.tune.cell import Cell, Scores
from lmmprune.compiler.tune.choose import POINTS, Finalist, finalist, losses_of
from lmmprune.compiler.tune.finals import pick_finalists
from lmmprune.compiler.tune.measure import UNPRUNED, Lab
from lmmprune.compiler.tune.race import Runner, rungs, survivors
from lmmprune.compiler.tune.request import TuneRequest
from lmmprune.compiler.tune.search_schedule import search_schedule, sites_to_search, trials
from lmmprune.errors import InputError
from lmmprune.facts import Facts
from lmmprune.passes.methods import Method, find_methods
from lmmprune.progress import Progress, counting

_FEW_ROUNDS = 8
"""Of timing, where a time decides who stays in the race."""


@dataclass(kw_only=True)
class Contest:
    """The parts of a run, which share what was asked for.

    Attributes:
        request: What was asked for.
        lab: Where candidates are measured.
        measure: ``points`` or ``kl``: what a loss is.
        facts: The model's numbers.
        progress: Told of each candidate.
        dropped: Candidate -> why it left the race, or was refused.
    """

    request: TuneRequest
    lab: Lab
    measure: str
    facts: Facts
    progress: Progress
    dropped: dict[str, str] = field(default_factory=dict)

    def loss(self, scores: Scores) -> float:
        """Mean loss on the examples that were seen."""
        return float(losses_of(self.lab.cell(UNPRUNED).tuning, scores, self.measure).mean())

    def race(self) -> list[Candidate]:
        """Return who is left when the samples have grown to all."""
        alive, tuning, budget = list(self.request.candidates), self.request.tuning, self.request.budget
        for number, size in enumerate(rungs(len(tuning))):
            what = f"{size} examples, {len(alive)} candidates"
            step = functools.partial(counting(self.progress, 2 * len(alive) + 1), what)
            step()
            base = self.lab.score(UNPRUNED, tuning[:size])
            self.request.crew.work(self.lab, alive, None)
            staying = []
            twins: dict[object, str] = {}
            for candidate in alive:
                step()
                cell = self._allowed(candidate, base, tuning[:size], first=number == 0)
                # On a decoder of few layers, several of the paper's layers are the same one.
                cuts = dataclasses.replace(candidate, ratio=0.0, options=_without_layers(candidate.options))
                twin = twins.setdefault((cuts, tuple(cell.schedule.items())), candidate.label)
                if cell.dropped is None and twin != candidate.label:
                    cell = self._leave(cell, f"cuts as {twin} does")
                    self.dropped[candidate.label] = str(cell.dropped)
                if cell.dropped is None:
                    staying.append(candidate)
            self.request.crew.work(self.lab, staying, tuning[:size], step)
            cells = {}
            for candidate in staying:
                cells[candidate] = self.lab.score(candidate, tuning[:size])
                if self.request.crew.alone:
                    step()
            alive = self._drop(cells, base, size) if cells else []
            if not alive:
                break
        if not alive:
            raise InputError(
                f"{budget}: none of {len(self.request.candidates)} candidates comes near; {self._nearest()}"
            )
        return alive

    def _allowed(self, candidate: Candidate, base: Cell, examples: Sequence[Question], *, first: bool) -> Cell:
        """Make a candidate, unless it left the race in an earlier run; it leaves it if it costs too much."""
        budget, cell = self.request.budget, self.lab.cell(candidate)
        if cell.dropped is None:
            cell = self.lab.make(candidate)
        if cell.refused is not None:
            self.dropped[candidate.label] = cell.refused
            return dataclasses.replace(cell, dropped=cell.refused)
        if cell.dropped is None and budget.kind == "flops" and cell.flops / base.flops > budget.value:
            cell = self._leave(cell, f"takes {cell.flops / base.flops:.3g} of the FLOPs")
        if cell.dropped is None and budget.timed and first:
            self.lab.time([candidate], examples, _FEW_ROUNDS)
            cell = self.lab.cell(candidate)
            if surely := _too_slow(cell, budget):
                cell = self._leave(cell, surely)
        if cell.dropped is not None:
            self.dropped[candidate.label] = cell.dropped
        return cell

    def _leave(self, cell: Cell, why: str) -> Cell:
        return dataclasses.replace(cell, dropped=why).save(self.lab.cells)

    def _drop(self, cells: Mapping[Candidate, Cell], base: Cell, size: int) -> list[Candidate]:
        """Return those that stay when this many examples were seen."""
        names = {candidate.name: candidate for candidate in cells}
        runners = [
            Runner(name=candidate.name, cost=cell.flops, group=candidate.int8 or "float")
            for candidate, cell in cells.items()
        ]
        seen = [Scores(kl=cell.tuning.kl[:size], right=cell.tuning.right[:size]) for cell in cells.values()]
        losses = np.stack([losses_of(base.tuning, scores, self.measure) for scores in seen])
        most = self.request.budget.value if self.request.budget.of_loss else None
        pictures = [one.picture for one in self.request.tuning[:size]]
        found = survivors(runners, losses, pictures, most)
        for name, why in found.items():
            if why is not None:
                left = self._leave(cells[names[name]], f"{why} ({size} examples)")
                self.dropped[names[name].label] = str(left.dropped)
                shutil.rmtree(self.lab.bundle(names[name]), ignore_errors=True)
        return [names[name] for name, why in found.items() if why is None]

    def _nearest(self) -> str:
        """Say which candidate missed the budget by least, with its numbers."""
        base, rows = self.lab.cell(UNPRUNED), []
        for candidate in self.request.candidates:
            cell = self.lab.cell(candidate)
            if cell.refused is None and cell.flops:
                value = self.loss(cell.tuning) if self.request.budget.of_loss and cell.tuning.kl else None
                ratio = cell.flops / base.flops
                timed = float(np.median(cell.times["ttft_ms"])) if "ttft_ms" in cell.times else None
                key = value if value is not None else timed if timed is not None else ratio
                rows.append((key, candidate, value, ratio, timed, len(cell.tuning.kl)))
        if not rows:
            return f"all were refused, as {next(iter(self.dropped.items()), ('', 'nothing was tried'))[1]}"
        _, candidate, value, ratio, timed, seen = min(rows, key=lambda row: row[0])
        told = [f"{ratio:.3g} of the FLOPs"]
        told += [f"{timed:.3g} ms to the first token"] if timed is not None else []
        unit = "points" if self.measure == POINTS else "nats"
        told += [f"a loss of {value:.3g} {unit} on {seen} examples"] if value is not None else []
        return f"the nearest is {candidate.label} with {', '.join(told)}"

    def search(self, alive: Sequence[Candidate]) -> list[Candidate]:
        """Return candidates with schedules, one for each precision: of the method that loses least where it can cut."""
        found = []
        able = [one for one in alive if one.method and self._cuts_where_searched(one)]
        for int8 in dict.fromkeys(one.int8 for one in able):
            start = min((one for one in able if one.int8 == int8), key=lambda one: self.lab.cell(one).flops)
            sites = sites_to_search(_class_of(start), self.facts)
            plain = dataclasses.replace(start, options=_without_layers(start.options))
            step = counting(self.progress, trials(sites))
            schedule = search_schedule(
                self.lab,
                plain,
                sites,
                self.facts.tokens,
                self.request.tuning,
                self.loss,
                self.request.budget.value,
                functools.partial(step, "schedule"),
            )
            if schedule is not None:
                self.lab.score(schedule, self.request.tuning)
                found.append(schedule)
        return found

    def _cuts_where_searched(self, one: Candidate) -> bool:
        """Whether a candidate cuts between decoder layers: some hyper-parameters put the cut elsewhere."""
        sites = sites_to_search(_class_of(one), self.facts)
        kinds = {site.rpartition("_")[0] for site in sites}
        cuts = [site.rpartition("_") for site in self.lab.cell(one).schedule]
        return any(kind in kinds and layer != "0" for kind, _, layer in cuts)

    def finals(self, alive: Sequence[Candidate]) -> list[Finalist]:
        """Return the finalists with their held-out numbers and times, the fastest first."""
        cells = {one: self.lab.cell(one) for one in dict.fromkeys(alive)}
        losses = {one: self.loss(cell.tuning) for one, cell in cells.items()}
        chosen = pick_finalists(cells, losses, self.request.budget)
        step = counting(self.progress, len(chosen) + 2)
        step("held-out: unpruned")
        base = self.lab.score(UNPRUNED, self.request.heldout, heldout=True)
        for candidate in chosen:
            step(f"held-out: {candidate.label}")
            self.lab.score(candidate, self.request.heldout, heldout=True)
        step(f"timing: {len(chosen)} finalists")
        self.lab.time(chosen, self.request.heldout, self.request.rounds)
        finalists = [
            finalist(
                candidate,
                self.lab.cell(candidate),
                base,
                [one.picture for one in self.request.heldout],
                self.measure,
                candidate.command(self.request.template, self._schedule(candidate)),
            )
            for candidate in chosen
        ]
        return sorted(finalists, key=lambda one: one.ttft.value)

    def _schedule(self, candidate: Candidate) -> Path | None:
        """Write the file of a schedule."""
        if not candidate.schedule:
            return None
        file = self.request.output / "schedules" / f"{candidate.name}.json"
        write_text(file, json.dumps(dict(candidate.schedule)) + "\n")
        return file


def _class_of(candidate: Candidate) -> type[Method]:
    return find_methods(candidate.method_file)[str(candidate.method)]


def _too_slow(cell: Cell, budget: Budget) -> str | None:
    """Return why a time surely misses the budget; None where it may keep it."""
    own, base = cell.times["ttft_ms"], cell.times["base_ttft_ms"]
    ratio = speedup(own, base if budget.kind == "ttft" else [1.0] * len(own))
    return f"takes {ratio.low:.3g} or more" if ratio.above(budget.value) else None


def _without_layers(options: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return hyper-parameters but those that a schedule stands in place of."""
    return tuple(pair for pair in options if pair[0] not in ("layer", "layers"))
