"""Make and measure one cell, in whatever process and on whatever machine: export, verify, evaluate, kept sets."""

from __future__ import annotations

import functools
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.data.questions import Question, load_examples
from lmmprune.compiler.export.export import export
from lmmprune.compiler.export.request import Request
from lmmprune.compiler.export.values import Int4, Int8, Ratio, Schedule
from lmmprune.compiler.measure.evaluate import evaluate
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.compiler.study.cell_result import CellResult
from lmmprune.compiler.study.fidelity import measure_cell, record_base
from lmmprune.compiler.study.folder import BASE_ANSWERS, STUDY, Folder
from lmmprune.compiler.study.grid import UNPRUNED, Cell
from lmmprune.compiler.study.kept_sets import collect_kept, save_kept
from lmmprune.compiler.study.settings import Settings
from lmmprune.compiler.study.write_file import write_text
from lmmprune.compiler.verify.verify import verify
from lmmprune.errors import GraphRefusal, InputError, LmmpruneError

if TYPE_CHECKING:
    from lmmprune.models.canonical import Canonical
    from lmmprune.models.source import Source

# Workers already are as many as the cores that shall be used.
_THREADS = 1
_INT4 = {"int4": Int4(), "int4-gptq": Int4(method="gptq")}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One cell to do; ``rebuild`` makes only its bundle again."""

    folder: Folder
    settings: Settings
    cell: Cell
    rebuild: bool = False


def request_of(job: Job) -> Request:
    """Return what ``export`` is asked for."""
    settings = job.settings
    return Request(
        model=settings.model,
        output=job.folder.bundle(job.cell),
        # At ratio 0 nothing of a method is left in the graphs.
        method=job.cell.method or Request.method,
        options=dict(job.cell.options),
        positions=job.cell.positions,
        method_file=job.folder.code(job.cell),
        tokens=Ratio(job.cell.ratio) if job.cell.schedule is None else Schedule(dict(job.cell.schedule[1])),
        int8=Int8() if job.cell.precision == "int8" else None,
        int4=_INT4.get(job.cell.precision),
        calibration=settings.calibration,
        calibration_samples=settings.calibration_samples,
        judge=False,  # that is what the study is for
        target=settings.target,
        force=True,  # the study's own, of a run that was ended before it was measured
    )


def run_cell(job: Job) -> str:
    """Do a cell and leave ``result.json``, written last; return the cell's name.

    A cell that its method can't have is a result too, with the reason.

    Raises:
        LmmpruneError: Something that isn't this cell's: the model, the disk, the unpruned model's graphs.
    """
    if not (job.folder.path / STUDY).is_file():
        raise InputError(
            f"'{job.folder.path}' isn't there on {socket.gethostname()}: give a folder that all nodes share"
        )
    try:
        result = _measure(job)
    except (InputError, GraphRefusal) as error:
        if not _concerns_the_cell(job, error):
            raise
        result = CellResult(name=job.cell.name, refused=" ".join(str(error).split()))
    if not job.rebuild:
        write_text(job.folder.cell(job.cell) / "result.json", result.to_json())
    return job.cell.name


def _concerns_the_cell(job: Job, error: LmmpruneError) -> bool:
    """Tell a method's refusal from trouble of the machine, such as a full disk, which has a cause outside of us."""
    return job.cell.method is not None and not job.rebuild and error.__cause__ is None


@dataclass
class _Clock:
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)


def _measure(job: Job) -> CellResult:
    clock = _Clock()
    with clock.step("export"):
        manifest = export(request_of(job), traced=_traced()).manifest
    path = job.folder.bundle(job.cell)
    if job.rebuild:
        return CellResult(name=job.cell.name)
    with clock.step("verify"):
        checks = verify(path, model=job.settings.model)
    bundle = Bundle.open(path)
    runtime = Runtime(bundle, threads=_THREADS)
    questions = _questions(job.settings.data, job.settings.prompts)[: job.settings.limit]
    with clock.step("evaluate"):
        answers = _ask(job, runtime, questions)
    with clock.step("kept sets"):
        save_kept(collect_kept(runtime, questions), job.folder.cell(job.cell) / "kept.npz")
    return CellResult(
        name=job.cell.name,
        tokens_before=manifest.tokens_before,
        average_tokens=manifest.average_tokens,
        schedule={stage.site: stage.tokens_out for stage in manifest.schedule},
        dtype=manifest.precision.dtype,
        bytes=bundle.bytes,
        prefill_flops=manifest.flops["prefill"]["after"],
        checks=tuple(checks),
        flops_before=manifest.flops["prefill"]["before"],
        **answers,
        seconds=clock.seconds,
        worker=f"{socket.gethostname()}:{os.getpid()}",
    )


def _ask(job: Job, runtime: Runtime, questions: Sequence[Question]) -> dict[str, Any]:
    """Return what of a result comes from answers."""
    limit = job.settings.max_new_tokens
    if all(question.answers for question in questions):
        predictions = evaluate(runtime, questions, max_new_tokens=limit).predictions
        return {
            "correct": tuple(int(prediction.correct) for prediction in predictions),
            "first_word": tuple(int(prediction.first_word) for prediction in predictions),
            "said": tuple(prediction.predicted for prediction in predictions),
        }
    base = job.folder.cell(UNPRUNED) / BASE_ANSWERS
    said = (record_base if job.cell == UNPRUNED else measure_cell)(runtime, questions, limit, base)
    return {
        "correct": tuple(int(one.fidelity.exact) for one in said),
        "first_word": tuple(int(one.fidelity.first) for one in said),
        "said": tuple(one.text for one in said),
        "fidelity": tuple(one.fidelity for one in said),
    }


@functools.cache
def _traced() -> Callable[[Source], Canonical]:
    """Return the trace that all cells of this process share: it takes longer than all else."""
    from lmmprune.compiler.export.trace import shared_trace

    return shared_trace()


@functools.cache
def _questions(spec: str, prompts: tuple[str, ...]) -> list[Question]:
    return load_examples(spec, prompts)
