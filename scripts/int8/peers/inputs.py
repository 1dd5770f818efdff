"""What the tools are given, and what they are judged on: a float bundle, recorded inputs, samples held out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.data.calibration import CalibrationSet, Sample, load_calibration
from lmmprune.compiler.data.questions import load_questions
from lmmprune.compiler.export.export import export
from lmmprune.compiler.export.request import Request
from lmmprune.compiler.export.values import Ratio
from lmmprune.compiler.quantize.feeds import SampleFeeds
from lmmprune.compiler.runtime.decode_steps import drive
from lmmprune.models.source import resolve
from peers.judge import open_session
from peers.tools import TINY


def prepare(work: Path, setup: dict[str, Any], traced: Any) -> None:
    """Export the float bundle and record the inputs of both graphs on the calibration samples."""
    (work / "feeds").mkdir(parents=True)
    (work / "setup.json").write_text(json.dumps(setup), encoding="utf-8")
    common = {"weights": setup["weights"], "layers": setup["layers"]}
    export(
        Request(
            model=setup["model"], output=work / "float", method="freepruner", tokens=Ratio(setup["ratio"]), **common
        ),
        traced=traced,
    )
    bundle = Bundle.open(work / "float")
    data = load_calibration(resolve(setup["model"], **common), None, setup["samples"])
    recorded = SampleFeeds(bundle.manifest, bundle.path, data, bundle.vision)
    for part, samples in (("vision", recorded.vision()), ("decoder", recorded.decoder())):
        _record(getattr(bundle, part), samples, work / "feeds", part)


def _record(graph: Path, samples: Any, folder: Path, part: str) -> None:
    session = open_session(graph)
    names = [output.name for output in session.get_outputs()]
    count = 0

    def run(row: Any) -> dict[str, Any]:
        nonlocal count
        np.savez(folder / f"{part}.{count:04d}.npz", **row)
        count += 1
        return dict(zip(names, session.run(names, dict(row)), strict=True))

    for sample in samples:
        drive(sample(), run)


def held_out(work: Path, setup: dict[str, Any]) -> SampleFeeds:
    """Return samples that no tool was calibrated on: questions of the test set, or other photographs."""
    if setup["model"] == TINY:
        asked = {question.picture: question for question in load_questions(TINY)}
        rows = [Sample(image=q.load(), prompt=q.prompt, answer=q.answers[0]) for q in list(asked.values())[:32]]
    else:
        source = resolve(setup["model"], weights=setup["weights"], layers=setup["layers"])
        rows = list(load_calibration(source, None, 2 * setup["samples"]).samples)[setup["samples"] :]
        # The same tokens for all, whatever the synthetic weights would say.
        rows = [dataclasses.replace(sample, answer="a cat and a dog") for sample in rows]
    bundle = Bundle.open(work / "float")
    data = CalibrationSet(samples=rows, source="held-out", generic=False)
    return SampleFeeds(bundle.manifest, bundle.path, data, bundle.vision)
