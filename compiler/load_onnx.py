"""Open an ONNX file that may be anything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lmmprune.errors import InputError

if TYPE_CHECKING:
    import onnx_ir as ir


def load_onnx(path: Path) -> ir.Model:
    """Load a graph; weights beside the file are not read.

    Raises:
        InputError: It can't be read as ONNX.
    """
    import onnx_ir as ir
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no types

    try:
        return ir.load(path)
    except (OSError, DecodeError, ValueError, TypeError) as error:
        raise InputError(f"'{path}' isn't an ONNX file that can be read ({type(error).__name__})") from error
