"""Quantize with neural-compressor 2.x, the last one that reads ONNX."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neural_compressor import PostTrainingQuantConfig, quantization

from peers.tools import PARTS, Done, Tool, feeds, one_line


class Loader:
    """Recorded inputs with labels that nobody reads."""

    batch_size = 1

    def __init__(self, work: Path, part: str) -> None:
        self._work = work
        self._part = part

    def __iter__(self) -> Iterator[Any]:
        """Start again."""
        return ((row, 0) for row in feeds(self._work, self._part))


def run(work: Path, folder: Path, tool: Tool, done: Done) -> None:
    """Write what graphs it can."""
    for part in PARTS:
        loader = Loader(work, part)
        try:
            config = PostTrainingQuantConfig(
                approach="static", quant_format="QDQ", calibration_sampling_size=[sum(1 for _ in loader)]
            )
            fitted = quantization.fit(str(work / "float" / f"{part}.onnx"), config, calib_dataloader=loader)
            if fitted is None:
                raise RuntimeError("fit() returned None, the reason is in its log")
            fitted.save(str(folder / f"{part}.onnx"))
            done(part, "")
        except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever the library raises is the result
            done(part, f"fails: {one_line(error)}")
