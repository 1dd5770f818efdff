"""Requests that wait for a bundle with a batch are answered together, each with an end of its own."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from exports import exported_again

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.data.questions import TINY_LLAVA, load_examples
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.compiler.runtime.sampling import Sampling
from lmmprune.compiler.serve.desk import Failed, Job
from lmmprune.compiler.serve.options import ServeOptions
from lmmprune.compiler.serve.question import Question
from lmmprune.compiler.serve.served import Served
from lmmprune.compiler.serve.together import Row
from lmmprune.compiler.serve.work import Done, Piece, answering
from lmmprune.errors import InputError

ROWS = 3


def rows(prompts: Sequence[str] = ()) -> list[Row]:
    found = []
    for index, one in enumerate(load_examples(TINY_LLAVA)[: max(4, len(prompts))]):
        held = io.BytesIO()
        one.load().save(held, "PNG")
        words = (prompts[index] if index < len(prompts) and prompts[index] else one.prompt,)
        asked = Question(urls=("x",), words=words, max_new_tokens=4, sampling=Sampling(), stop=())
        found.append(Row(asked, [held.getvalue], 10**6))
    return found


def answered(served: Served, asked: Sequence[Row], *, leave: int | None = None) -> list[list[Any]]:
    """Submit jobs while the desk is busy; return the events of each, the last one ending it."""

    async def ask() -> list[list[Any]]:
        busy = asyncio.Event()
        loop = asyncio.get_running_loop()
        release = threading.Event()

        def hold(job: Job) -> None:
            loop.call_soon_threadsafe(busy.set)
            release.wait(30)

        served.desk.submit(Job(hold))
        await busy.wait()
        jobs = [
            Job(answering(served.runtime, row.question, row.pictures, row.max_pixels, served.prefixes), row)
            for row in asked
        ]
        for job in jobs:
            served.desk.submit(job)
        if leave is not None:
            jobs[leave].cancel()
        release.set()
        found: list[list[Any]] = [[] for _ in jobs]
        for place, (job, events) in enumerate(zip(jobs, found, strict=True)):
            while place != leave and not (events and isinstance(events[-1], Done | Failed)):
                events.append(await asyncio.wait_for(job.events.get(), 60))
        return found

    return asyncio.run(ask())


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Any:
    runtime = Runtime(Bundle.open(exported_again(ratio=0.5, batch=ROWS)[0]), threads=1)
    sizes: list[int] = []
    run = runtime.answer_batch
    monkeypatch.setattr(runtime, "answer_batch", lambda asked: sizes.append(len(asked)) or run(asked))
    made = Served("tiny", runtime, ServeOptions())
    made.sizes = sizes  # type: ignore[attr-defined]  # for the tests
    yield made
    made.close(5)


def text(events: Sequence[Any]) -> str:
    return "".join(event.text for event in events if isinstance(event, Piece))


def alone(row: Row) -> str:
    runtime = Runtime(Bundle.open(exported_again(ratio=0.5)[0]), threads=1)
    return runtime.answer(row.image(), row.question.words, 4).text


def test_waiting_requests_are_answered_together(served: Any) -> None:
    asked = rows()
    assert [text(events) for events in answered(served, asked)] == [alone(row) for row in asked]
    assert served.sizes == [ROWS], "and the fourth alone"
    assert served.describe()["lmmprune"]["batch"] == ROWS


def test_a_mistake_and_a_client_that_leaves_trouble_nobody(served: Any) -> None:
    asked = rows(["", "what? " * 500, ""])[:3]
    first, wrong, last = answered(served, asked)
    assert "the prompt is too long" in str(wrong[-1].error)
    assert [text(first), text(last)] == [alone(asked[0]), alone(asked[2])]
    asked = rows()[:3]
    found = answered(served, asked, leave=1)
    assert [text(found[0]), text(found[2])] == [alone(asked[0]), alone(asked[2])]


def test_a_batch_keeps_no_conversations(served: Any) -> None:
    with pytest.raises(InputError, match=r"--conversations 1: .* answers 3 questions at once"):
        Served("tiny", served.runtime, ServeOptions(conversations=1))
