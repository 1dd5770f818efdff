"""Candidates that are made and measured ahead, side by side: in processes of this machine or on a Ray cluster.

What a worker finds lies in the run's folder, where the race then looks it up; so the race itself knows of no workers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmmprune.compiler.data.questions import Question
from lmmprune.compiler.export.request import Request
from lmmprune.compiler.study.local import run_locally
from lmmprune.compiler.study.ray_cluster import run_on_ray
from lmmprune.compiler.tune.candidate import Candidate
from lmmprune.compiler.tune.measure import Lab
from lmmprune.models.canonical import Canonical
from lmmprune.models.source import Source


@dataclass(frozen=True, kw_only=True)
class Crew:
    """Who works beside the race.

    Attributes:
        workers: Processes on this machine; 1: the race does all itself.
        ray: Address of a cluster whose nodes share the folder, which then works instead.
    """

    workers: int = 1
    ray: str | None = None

    @property
    def alone(self) -> bool:
        """Whether there is nobody."""
        return self.workers == 1 and self.ray is None

    def work(
        self,
        lab: Lab,
        candidates: Sequence[Candidate],
        examples: Sequence[Question] | None,
        on_done: Callable[[], None] = lambda: None,
    ) -> None:
        """Make candidates, or measure them, and leave what was found in their records.

        Args:
            lab: Of the run.
            candidates: Which; those that are made and measured already cost nothing.
            examples: What they shall have seen then; None: they are only made.
            on_done: Called when each is done.

        Raises:
            LmmpruneError: A worker's, or the cluster can't be reached.
        """
        if self.alone:
            return
        jobs = [
            _Job(
                folder=lab.folder,
                template=lab.template,
                match=lab.match,
                max_new_tokens=lab.max_new_tokens,
                candidate=candidate,
                examples=None if examples is None else tuple(examples),
            )
            for candidate in candidates
        ]
        if self.ray is not None:
            run_on_ray(jobs, self.ray, lambda name: on_done(), _do)
        else:
            run_locally(jobs, self.workers, lambda name: on_done(), _do)


@dataclass(frozen=True, kw_only=True)
class _Job:
    folder: Path
    template: Request
    match: str | None
    max_new_tokens: int
    candidate: Candidate
    examples: tuple[Question, ...] | None


def _do(job: _Job) -> str:
    lab = Lab(
        folder=job.folder,
        template=job.template,
        match=job.match,
        max_new_tokens=job.max_new_tokens,
        threads=1,  # as many candidates as cores
        traced=_traced(),
    )
    if job.examples is None:
        lab.make(job.candidate)
    else:
        lab.score(job.candidate, job.examples)
    return job.candidate.name


@functools.cache
def _traced() -> Callable[[Source], Canonical]:
    """Return the trace that all candidates of this process share: it takes longer than all else."""
    from lmmprune.compiler.export.trace import shared_trace

    return shared_trace()
