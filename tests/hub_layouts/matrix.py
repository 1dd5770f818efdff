"""One cell of the table checkpoint x command: export, verify, and for the plain export transformers' own answer."""

from __future__ import annotations

import functools
import re
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from huggingface_hub import constants
from short_request import short_request

from hub_layouts import oracle
from hub_layouts.layout import Layout
from hub_layouts.one_trace import one_trace
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.export.export import export
from lmmprune.compiler.export.trace import shared_trace
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.compiler.verify.verify import verify
from lmmprune.errors import LmmpruneError

COMMANDS: Mapping[str, Mapping[str, Any]] = {
    "plain": {"ratio": 0.0},
    "divprune": {"ratio": 0.5},
    "freepruner": {"ratio": 0.5, "method": "freepruner"},
    "fastv": {"ratio": 0.25, "method": "fastv"},
    "ficoco-v": {"ratio": 0.5, "method": "ficoco-v"},
    "ficoco-l": {"ratio": 0.5, "method": "ficoco-l"},
    "int8": {"ratio": 0.5, "int8": True, "calibration_samples": 4},
    "float16": {"ratio": 0.5, "dtype": "float16"},
}
"""What is tried, as settings of an export; ``lmmprune export`` has options of the same names."""

# float32 through the same operations in another order: the pictures themselves are equal to the bit.
_PIXELS = 1e-6


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What came of a command on a checkpoint.

    Attributes:
        layout: Name.
        command: Name.
        outcome: "served", "refused" (one line for the user) or "failed" (anything else).
        line: The refusal or the failure; how the answer compares, where it was asked for.
        seconds: It took.
    """

    layout: str
    command: str
    outcome: str
    line: str
    seconds: float


class Tried:
    """A layout on disk, on which commands are tried; traces are shared among them."""

    def __init__(self, layout: Layout, work: Path, *, layers: int | None = None) -> None:
        """Write the files, with another number of decoder layers than the tests' if it is given."""
        self.layout = layout
        self.folder = work / re.sub(r"[^\w.]+", "-", layout.name).strip("-")
        self.folder.mkdir(parents=True)
        layout.write(self.folder, layers or layout.layers)
        self.model = layout.hub_model or str(self.folder)
        self._bundles = work / "bundles" / self.folder.name
        self._traced = shared_trace()

    def try_command(self, command: str) -> Cell:
        """Export, verify and with ``plain`` compare answers; nothing is raised but an interruption."""
        started = time.perf_counter()
        try:
            # Without a network: from the cache, where the model is there.
            cache = mock.patch.multiple(constants, HF_HUB_CACHE=str(self.folder), HF_HUB_OFFLINE=True)
            with cache, one_trace():
                outcome, line = self._serve(command, self._bundles / command)
        except LmmpruneError as error:
            outcome, line = "refused", " ".join(str(error).split())
        except Exception as error:  # noqa: BLE001  a table has a row for whatever happens
            place = traceback.extract_tb(error.__traceback__)[-1]
            outcome = "failed"
            line = f"{type(error).__name__} in {Path(place.filename).name}: {' '.join(str(error).split())[:300]}"
        seconds = time.perf_counter() - started
        # Where the folder lies is no part of a table.
        line = line.replace(f"{self.folder.parent}/", "")
        return Cell(layout=self.layout.name, command=command, outcome=outcome, line=line, seconds=seconds)

    def _serve(self, command: str, bundle: Path) -> tuple[str, str]:
        settings = {**self.layout.export, **COMMANDS[command]}
        bundle.parent.mkdir(parents=True, exist_ok=True)
        report = export(short_request(model=self.model, output=bundle, **settings), traced=self._traced)
        in_place = report.manifest.cache.length is not None
        if in_place != (report.manifest.precision.dtype == "float32"):
            return "failed", f"the cache is {'' if in_place else 'not '}updated in place"
        failed = [check for check in verify(bundle, samples=2, model=str(self.model)) if check.passed is False]
        if failed:
            return "failed", f"verify: {failed[0].name}: {failed[0].found}"
        tokens = f"{report.manifest.tokens_before} -> {report.manifest.image_tokens}"
        return self._compare(bundle) if command == "plain" else ("served", tokens)

    def _compare(self, bundle: Path) -> tuple[str, str]:
        """Hold the bundle's answer against transformers', from the picture and the question on."""
        wanted = self.wanted
        runtime = Runtime(Bundle.open(bundle), threads=1)
        image = oracle.picture(self.layout)
        prompt = runtime.prompter.encode(oracle.QUESTION).input_ids[0].tolist()
        if prompt != wanted.prompt:
            return "failed", f"the prompt is {_unlike(prompt, wanted.prompt)}"
        pixels = runtime.preprocessor(image)
        distance = float(np.abs(oracle.as_pictures(wanted.pixels, pixels.shape) - pixels).max())
        if distance > _PIXELS:
            return "failed", f"pixel values differ by {distance:.2g}"
        answer = runtime.answer(image, oracle.QUESTION, oracle.NEW_TOKENS)
        _ = answer.text
        if answer.tokens != wanted.tokens:
            return "failed", f"the answer is {_unlike(answer.tokens, wanted.tokens)}"
        return "served", f"{len(prompt)} tokens, pixels within {distance:.1g}, the answer's {len(answer.tokens)} equal"

    @functools.cached_property
    def wanted(self) -> oracle.Expected:
        """What transformers answers."""
        return oracle.expected(self.model, self.layout)


def _unlike(found: list[int], wanted: list[int]) -> str:
    place = next((i for i, pair in enumerate(zip(found, wanted, strict=False)) if pair[0] != pair[1]), None)
    if place is None:
        return f"{len(found)} tokens long, transformers' {len(wanted)}"
    return f"{found[place : place + 6]}... from token {place} on, transformers' {wanted[place : place + 6]}..."


def _quiet(what: str, done: int, of: int) -> None:
    """Say nothing."""
