"""Export candidates and measure them, one in memory at a time; the unpruned model's answers are computed once."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lmmprune.compiler.bundle.bundle import TOKENIZER, Bundle
from lmmprune.compiler.compare.compare import How, answer_examples, judge_examples, take_times
from lmmprune.compiler.data.questions import Question
from lmmprune.compiler.export.export import export
from lmmprune.compiler.export.request import Request
from lmmprune.compiler.export.trace import shared_trace
from lmmprune.compiler.measure.matching import MATCHES
from lmmprune.compiler.runtime.prompt import Prompter
from lmmprune.compiler.targets import machine
from lmmprune.compiler.tune.candidate import Candidate
from lmmprune.compiler.tune.cell import Cell, load_cell
from lmmprune.errors import GraphRefusal, InputError
from lmmprune.models.canonical import Canonical
from lmmprune.models.source import Source
from lmmprune.progress import Progress, silent

UNPRUNED = Candidate()
# A bundle stays between rungs where the disk has room for so many of its size.
_ROOM = 20
# A bundle that is open takes so many times its size, generously: weights, those that are packed anew, activations.
_LOADED = 6


@dataclass(kw_only=True)
class Lab:
    """Where candidates are made and measured.

    Attributes:
        folder: Of the run: ``cells/``, ``bundles/``, ``answers/``.
        template: Of what model bundles are made, and for what target.
        match: When an answer is right, a key of ``MATCHES``; None: nobody knows.
        max_new_tokens: Answers are cut there.
        threads: Threads within an operator.
    """

    folder: Path
    template: Request
    match: str | None
    max_new_tokens: int = 16
    threads: int | None = None
    traced: Callable[[Source], Canonical] = field(default_factory=shared_trace)

    @property
    def cells(self) -> Path:
        """Folder of the records."""
        return self.folder / "cells"

    def bundle(self, candidate: Candidate) -> Path:
        """Where a candidate's bundle is, or will be."""
        return self.folder / "bundles" / candidate.name

    def cell(self, candidate: Candidate) -> Cell:
        """What is known of a candidate."""
        return load_cell(self.cells, candidate.name)

    def make(self, candidate: Candidate, progress: Progress = silent) -> Cell:
        """Export a candidate where its bundle isn't there; one that its method can't have is refused in its record.

        Raises:
            LmmpruneError: Something that isn't this candidate's: the model, the disk, the unpruned graphs.
        """
        cell, path = self.cell(candidate), self.bundle(candidate)
        if cell.refused is not None or (cell.flops and (path / "manifest.json").is_file()):
            return cell
        try:
            manifest = export(candidate.request(self.template, path), progress, traced=self.traced).manifest
        except (InputError, GraphRefusal) as error:
            # What has a cause outside of us, such as a full disk, is nobody's refusal.
            if candidate.method is None or error.__cause__ is not None:
                raise
            return dataclasses.replace(cell, refused=" ".join(str(error).split())).save(self.cells)
        return dataclasses.replace(
            cell,
            tokens=manifest.average_tokens,
            bytes=Bundle.open(path).bytes,
            flops=sum(part["after"] for part in manifest.flops.values()),
            schedule={stage.site: stage.tokens_out for stage in manifest.schedule},
        ).save(self.cells)

    def spare(self, candidate: Candidate) -> None:
        """Remove a bundle that the disk has no room for; it is exported again when it is needed."""
        path = self.bundle(candidate)
        if path.is_dir() and shutil.disk_usage(path).free < _ROOM * Bundle.open(path).bytes:
            shutil.rmtree(path)

    def keep_only(self, candidates: Sequence[Candidate]) -> None:
        """Remove the bundles of all others, but for the unpruned one."""
        names = {one.name for one in (UNPRUNED, *candidates)}
        for path in (self.folder / "bundles").iterdir():
            if path.is_dir() and path.name not in names:
                shutil.rmtree(path)

    def score(self, candidate: Candidate, examples: Sequence[Question], *, heldout: bool = False) -> Cell:
        """Measure a candidate on those of the examples that it hasn't seen.

        Args:
            candidate: Which.
            examples: All that it shall have seen then; those of one picture stand together.
            heldout: Whether they are those for the final numbers.
        """
        cell = self.make(candidate)
        known = cell.heldout if heldout else cell.tuning
        missing = examples[len(known.kl) :]
        if cell.refused is not None or not missing:
            return cell
        how = self._how()
        base = Bundle.open(self.bundle(UNPRUNED))
        answers = answer_examples(base, "unpruned", missing, how, silent)
        prompter = Prompter(base.manifest, base.file(TOKENIZER))
        said = [prompter.decode(answer.tokens.tolist()) for answer in answers]
        if candidate == UNPRUNED:
            scores = known.more([0.0] * len(missing), self._right(said, missing))
        else:
            bundle = Bundle.open(self.bundle(candidate))
            judged, _ = judge_examples(bundle, candidate.name, missing, answers, said, how, silent)
            scores = known.more([one.fidelity.kl for one in judged], self._right([one.said for one in judged], missing))
            self.spare(candidate)
        cell = self.cell(candidate)
        found = dataclasses.replace(cell, heldout=scores) if heldout else dataclasses.replace(cell, tuning=scores)
        return found.save(self.cells)

    def time(self, candidates: Sequence[Candidate], examples: Sequence[Question], rounds: int) -> None:
        """Time candidates beside the unpruned model, where their records have fewer rounds than that.

        All share their rounds, so that they can be told apart on a machine that isn't quiet. Where memory doesn't hold
        all, each is timed with the unpruned model alone.
        """
        cells = {one: self.make(one) for one in candidates}
        able = [one for one, cell in cells.items() if cell.refused is None]
        missing = [one for one in able if len(cells[one].times.get("ttft_ms", ())) < rounds]
        size = self.cell(UNPRUNED).bytes + sum(cells[one].bytes for one in able)
        together = _LOADED * size < machine.free_memory()
        for group in [able] if together and missing else [[one] for one in missing]:
            bundles = [Bundle.open(self.bundle(one)) for one in (UNPRUNED, *group)]
            base, *found = take_times(bundles, examples, dataclasses.replace(self._how(), rounds=rounds), silent)
            base_times = {f"base_{name}": tuple(values) for name, values in base.items()}
            for one, own in zip(group, found, strict=True):
                times = {name: tuple(values) for name, values in own.items()} | base_times
                dataclasses.replace(self.cell(one), times=times).save(self.cells)

    def _how(self) -> How:
        return How(
            max_new_tokens=self.max_new_tokens,
            rounds=0,
            threads=self.threads,
            kept_answers=self.folder / "answers",
        )

    def _right(self, said: Sequence[str], examples: Sequence[Question]) -> list[float]:
        if self.match is None:
            return []
        match = MATCHES[self.match]
        return [float(match(text, example.answers)) for text, example in zip(said, examples, strict=True)]
