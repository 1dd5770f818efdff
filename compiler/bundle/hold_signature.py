"""Hold the inputs and outputs that a graph has against those that the manifest promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lmmprune.compiler.bundle.interface import Graph, Tensor
from lmmprune.errors import BundleError

Found = Mapping[str, tuple[str, Sequence[int | str | None]]]
"""Name -> type and shape; a dimension that isn't static is a name or None."""


def hold_signature(file: Path, expected: Graph, inputs: Found, outputs: Found) -> None:
    """Compare names, types, ranks and static dimensions.

    Args:
        file: The graph's file, for the message.
        expected: What the manifest says.
        inputs: What the graph has.
        outputs: Same.

    Raises:
        BundleError: They differ; the message names the tensor.
    """
    for side, found, promised in (("input", inputs, expected.inputs), ("output", outputs, expected.outputs)):
        names = {tensor.name for tensor in promised}
        if differ := sorted(names ^ set(found)):
            what = "lacks the" if differ[0] in names else "has the unknown"
            raise _refusal(file, f"{what} {side} '{differ[0]}'")
        for tensor in promised:
            dtype, shape = found[tensor.name]
            if (dtype, _static(shape)) != (tensor.dtype, _static(tensor.shape)):
                was = f"{dtype} {_shown(shape)} for its {side} '{tensor.name}'"
                raise _refusal(file, f"has {was}, and not {tensor.dtype} {_shown(tensor.shape)}")


def as_found(tensors: Sequence[Tensor]) -> Found:
    """Return tensors by name."""
    return {tensor.name: (tensor.dtype, tensor.shape) for tensor in tensors}


def _refusal(file: Path, what: str) -> BundleError:
    return BundleError(f"'{file}' {what}, as the bundle's manifest says: they aren't of one export; export again")


def _static(shape: Sequence[int | str | None]) -> list[int | None]:
    return [dim if isinstance(dim, int) else None for dim in shape]


def _shown(shape: Sequence[int | str | None]) -> str:
    return f"[{', '.join('?' if dim is None else str(dim) for dim in shape)}]"
