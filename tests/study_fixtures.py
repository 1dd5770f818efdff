"""A made-up study, so that statistics, charts, tables and the report are tested without a model."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lmmprune.compiler.data.questions import Question
from lmmprune.compiler.study.cell_result import CellResult
from lmmprune.compiler.study.findings import Findings, find
from lmmprune.compiler.study.grid import Cell, grid
from lmmprune.compiler.study.kept_sets import Overlap
from lmmprune.compiler.study.settings import Settings
from lmmprune.compiler.study.timing import Group
from lmmprune.compiler.verify.verify import Check

PICTURES = [f"p{number // 4}" for number in range(80)]
QUESTIONS = [
    Question(
        picture=picture, load=lambda: Image.new("RGB", (8, 8)), prompt=f"what is {n}?", answers=("x",), kind="ab"[n % 2]
    )
    for n, picture in enumerate(PICTURES)
]
TIMING = {"rounds": 12, "new_tokens": 4, "threads": None, "prompt": "?", "picture": "0", "machine": "a processor"}
ABOUT = {"model": "tiny-llava", "questions": "80", "target": "ort-cpu", "data": "0"}
SETTINGS = Settings(
    model="m", data="d", limit=None, max_new_tokens=4, target="ort-cpu", calibration=None, calibration_samples=32
)
METRICS = ("vision_ms", "prefill_ms", "ttft_ms", "ms_per_token")


def made_up(
    methods: Sequence[str] = ("freepruner", "random", "ficoco-v"),
    ratios: Sequence[float] = (0, 0.5, 0.75),
    *,
    precisions: Sequence[str] = ("fp", "int8"),
    refused: Sequence[str] = (),
    timed: bool = True,
) -> tuple[Findings, Mapping[Cell, CellResult], Group]:
    """Return findings with the results and times that they come from."""
    generator = np.random.default_rng(3)
    results, samples = {}, {}
    luck = generator.random(len(PICTURES))
    noise = generator.normal(1, 0.02, 12)
    for cell in grid(methods, ratios, precisions=precisions):
        if cell.name in refused:
            results[cell] = CellResult(name=cell.name, refused="the method can't: <ask> for less & more")
            continue
        correct = luck < 0.95 - 0.4 * cell.ratio + generator.normal(0, 0.03, len(PICTURES))
        results[cell] = result(cell, tuple(correct.astype(int).tolist()))
        times = noise * generator.normal(1, 0.01, 12) * (10 - 6 * cell.ratio) * (0.6 if cell.quantized else 1)
        samples[cell.name] = {metric: times.tolist() for metric in METRICS}
    group = Group(samples=samples)
    told = ("freepruner-0.5-int8", "freepruner-0.75-int8")
    overlaps = {name: (Overlap(site="vision_output", mean=0.97, lowest=0.9, pictures=20),) for name in told}
    return (
        find(results, QUESTIONS, [group] if timed else [], overlaps, about=ABOUT, timing=TIMING if timed else None),
        results,
        group,
    )


def result(cell: Cell, correct: tuple[int, ...]) -> CellResult:
    """Return the result of a cell that answered like this."""
    return CellResult(
        name=cell.name,
        tokens_before=144,
        average_tokens=144 * (1 - cell.ratio),
        schedule={"vision_output": round(144 * (1 - cell.ratio))},
        dtype="float32",
        bytes=2_000_000 if cell.quantized else 7_000_000,
        prefill_flops=1e9 * (1 - 0.8 * cell.ratio),
        flops_before=1e9,
        said=tuple("wx"[one] for one in correct),
        checks=(Check(name="checksums", passed=True, found="6 files"),),
        correct=correct,
        # Every fourth question's first word is right in any case.
        first_word=tuple(max(one, int(number % 4 == 0)) for number, one in enumerate(correct)),
        worker="here:1",
    )


def chromium(page: Path, profile: Path, *options: str) -> tuple[str, list[str]]:
    """Open a page in a real browser without a window; return its DOM and what its console said.

    Args:
        page: An HTML file.
        profile: A directory for the browser's own files.
        options: More of its options.
    """
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert found, "no Chromium here, and the report is tested in one: apt-get install chromium (make test does)"
    # The sandbox of a browser doesn't work for root and in containers; the page is ours.
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={profile}"]
    done = subprocess.run(
        [found, *arguments, "--enable-logging=stderr", "--dump-dom", *options, page.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout, re.findall(r"CONSOLE[^\n]*", done.stderr)
