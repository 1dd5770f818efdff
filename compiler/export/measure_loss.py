"""What pruning and quantizing cost on a few of the user's pictures: measured while both models are at hand."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmmprune.compiler.assets.text_layout import TextLayout
from lmmprune.compiler.backends.cpu_session import cpu_session, run_all
from lmmprune.compiler.bundle.content import Loss
from lmmprune.compiler.bundle.interface import SELECTION, Prompt
from lmmprune.compiler.compare.fidelity import measure_fidelity
from lmmprune.compiler.compare.record import Recorded, keep_likeliest, log_softmax
from lmmprune.compiler.data.calibration import CalibrationSet
from lmmprune.compiler.export.count_tokens import TokenPlan
from lmmprune.compiler.export.decide import Decision
from lmmprune.compiler.export.describe import interface_of
from lmmprune.compiler.export.reduce import Reduced, reduce
from lmmprune.compiler.export.step_clock import StepClock
from lmmprune.compiler.quantize.feeds import SampleFeeds
from lmmprune.compiler.quantize.int8_plan import WHOLE_BYTES
from lmmprune.compiler.quantize.quantize import float_bytes, write_to_run
from lmmprune.compiler.runtime.decode_steps import Feeds, Outputs, Steps, drive
from lmmprune.models.canonical import Canonical
from lmmprune.names import LOGITS
from lmmprune.progress import silent, step


@dataclass(frozen=True, kw_only=True)
class Unpruned:
    """What the unpruned float32 model says of each sample.

    Attributes:
        data: The samples.
        answers: Its own greedy answers.
    """

    data: CalibrationSet
    answers: Sequence[Recorded]


def ask_unpruned(
    decision: Decision, graphs: Canonical, prompt: Prompt, text: TextLayout, assets: Path, clock: StepClock
) -> Unpruned | None:
    """Ask the model as it was traced about a few of the user's pictures.

    Args:
        decision: What is going to be done.
        graphs: Unpruned, float32; stay as they are.
        prompt: How a question becomes tokens.
        text: What is constant about prompts.
        assets: Directory with the tokenizer and the preprocessor.
        clock: Told of the step.

    Returns:
        What it says; None: nothing is lost, nobody gave pictures, or the model is too large to be run whole.
    """
    data = decision.judged_on
    if data is None or float_bytes(graphs.decoder) > WHOLE_BYTES:
        return None
    with step(clock.report, "ask unpruned"):
        tokens = decision.facts.tokens
        whole = reduce(
            dataclasses.replace(decision, stages=(), counts=(tokens,)),
            TokenPlan(counts=(tokens,), stages=()),
            graphs.clone(),
            prompt,
            text,
            StepClock(silent),
        )
        words = _ask(decision, whole, data, assets, None)
        return Unpruned(data=data, answers=[keep_likeliest(logs.argmax(axis=1).tolist(), logs) for logs in words])


def measure_loss(
    unpruned: Unpruned | None, decision: Decision, reduced: Reduced, assets: Path, clock: StepClock
) -> Loss | None:
    """Lead the graphs of the bundle through the unpruned model's answers.

    Args:
        unpruned: What that one says; None: it wasn't asked.
        decision: What is being done.
        reduced: Pruned, perhaps quantized graphs, before they are cast.
        assets: Directory with the tokenizer and the preprocessor.
        clock: Told of the step.
    """
    if unpruned is None:
        return None
    with step(clock.report, "measure loss"):
        led = [answer.tokens[:-1].tolist() for answer in unpruned.answers]
        words = _ask(decision, reduced, unpruned.data, assets, led)
    found = [measure_fidelity(answer, logs) for answer, logs in zip(unpruned.answers, words, strict=True)]
    return Loss(
        samples=len(found),
        source=unpruned.data.source,
        kl=float(np.mean([one.kl for one in found])),
        same_first=sum(one.first for one in found),
    )


def _ask(
    decision: Decision, models: Reduced, data: CalibrationSet, assets: Path, answers: Sequence[Sequence[int]] | None
) -> list[NDArray[np.float64]]:
    """Return what graphs say of each token of given answers, or of their own."""
    # Within the bundle in the making: a place with room for the weights, which /tmp need not be.
    with tempfile.TemporaryDirectory(dir=assets, prefix="loss.") as name:
        work = Path(name)
        parts = {"vision": models.vision, "decoder": models.decoder, SELECTION: models.selection}
        files = {part: write_to_run(model, work / f"{part}.onnx") for part, model in parts.items() if model is not None}
        feeds = SampleFeeds(
            interface_of(decision, models), assets, data, files["vision"], files.get(SELECTION), answers=answers
        )
        session = cpu_session(files["decoder"])
        return [_say(session, start) for start in feeds.decoder()]


def _say(session: Any, start: Callable[[], Steps]) -> NDArray[np.float64]:
    rows = []

    def run(feeds: Feeds) -> Outputs:
        found = run_all(session, feeds)
        rows.append(found[LOGITS][0, -1])
        return found

    drive(start(), run)
    return log_softmax(np.stack(rows))
