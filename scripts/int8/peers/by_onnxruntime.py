"""Quantize with onnxruntime.quantization: QDQ, U8 x S8 per channel, min-max; or dynamic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from peers.tools import PARTS, Done, Tool, feeds, one_line, setup_of


class Reader(CalibrationDataReader):  # type: ignore[misc]  # untyped
    """Recorded inputs, once."""

    def __init__(self, work: Path, part: str) -> None:
        self._feeds = feeds(work, part)

    def get_next(self) -> Any:
        """Return the next run's inputs, None at the end."""
        return next(self._feeds, None)


def run(work: Path, folder: Path, tool: Tool, done: Done) -> None:
    """Write what graphs it can."""
    large = setup_of(work)["large"]
    for part in PARTS:
        path, note = work / "float" / f"{part}.onnx", ""
        try:
            ready = folder / f"{part}.ready.onnx"
            quant_pre_process(path, ready, skip_optimization=True, save_as_external_data=large)
            path = ready
        except Exception as error:  # noqa: BLE001  # whatever the library raises is the result
            note = f"its pre-processing fails ({one_line(error)}); "
        try:
            _quantize(path, folder / f"{part}.onnx", tool, Reader(work, part), large=large)
            done(part, note)
        except Exception as error:  # noqa: BLE001  # as above
            done(part, f"{note}fails: {one_line(error)}")


def _quantize(path: Path, output: Path, tool: Tool, reader: Reader, *, large: bool) -> None:
    common = {"per_channel": True, "weight_type": QuantType.QInt8, "use_external_data_format": large}
    if tool.dynamic:
        kinds = ["MatMul", "Gemm"] if tool.products_only else None
        quantize_dynamic(path, output, op_types_to_quantize=kinds, **common)
        return
    quantize_static(
        path,
        output,
        reader,
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        op_types_to_quantize=["MatMul", "Gemm", "Conv"] if tool.products_only else None,
        extra_options={"MatMulConstBOnly": True} if tool.products_only else {},
        **common,
    )
