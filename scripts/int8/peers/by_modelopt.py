"""Quantize with ModelOpt's ONNX PTQ: S8 x S8, max, the products only, floating point stays float32."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from modelopt.onnx.quantization import quantize
from onnxruntime.quantization import CalibrationDataReader

from peers.tools import PARTS, Done, Tool, feeds, one_line, setup_of


class Reader(CalibrationDataReader):  # type: ignore[misc]  # untyped
    """Recorded inputs, as often as they are wanted."""

    def __init__(self, work: Path, part: str) -> None:
        self._work = work
        self._part = part
        self.rewind()

    def get_next(self) -> Any:
        """Return the next run's inputs, None at the end."""
        return next(self._feeds, None)

    def get_first(self) -> Any:
        """Return the first run's inputs."""
        return next(feeds(self._work, self._part))

    def rewind(self) -> None:
        """Start again."""
        self._feeds = feeds(self._work, self._part)


def run(work: Path, folder: Path, tool: Tool, done: Done) -> None:
    """Write what graphs it can."""
    large = setup_of(work)["large"]
    for part in PARTS:
        copy = folder / "float"  # it writes beside its input
        shutil.copytree(work / "float", copy, dirs_exist_ok=True)
        try:
            quantize(
                str(copy / f"{part}.onnx"),
                quantize_mode="int8",
                calibration_data_reader=Reader(work, part),
                calibration_method="max",
                calibration_eps=["cpu"],
                op_types_to_quantize=["MatMul", "Gemm", "Conv"],
                high_precision_dtype="fp32",
                use_external_data_format=large,
                output_path=str(folder / f"{part}.onnx"),
                log_level="ERROR",
            )
            done(part, "" if (folder / f"{part}.onnx").exists() else "fails: wrote nothing")
        except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever the library raises is the result
            done(part, f"fails: {one_line(error)}")
