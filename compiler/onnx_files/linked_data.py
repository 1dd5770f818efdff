"""Weights beside an ONNX file, also behind links as a model hub's cache stores them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from lmmprune.contained import stray
from lmmprune.errors import InputError


class LinkedTensor(ir.ExternalTensor):
    """A tensor in a file that may be a link, or have several names.

    onnx-ir reads no file that a link leads to outside of the graph's folder, and none with a second name. Here it has
    been checked that the file lies in the folder, or in the hub's cache whose snapshot that is.
    """

    def __init__(self, tensor: ir.ExternalTensor, file: Path) -> None:
        super().__init__(
            tensor.location,
            tensor.offset,
            tensor.length,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=str(tensor.name),
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
            # Without one the file is read as it is.
            base_dir="",
        )
        self._file = str(file)

    @property
    def path(self) -> str:
        """Where the data lies."""
        return self._file


def link_data(model: ir.Model, path: Path, *, check: bool) -> None:
    """Let all external weights of a graph be read through links.

    Args:
        model: Changed in place.
        path: Its file. Names of weights count from the folder in which it was named, not from where a link leads.
        check: Whether the files must be there now, as long as the graph says.

    Raises:
        InputError: A name leads out of the folder; or a file is missing or too short.
    """
    sizes: dict[Path, int] = {}
    for value in _initializers(model):
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        file = path.parent / _inside(path, tensor)
        if check:
            if file not in sizes:
                sizes[file] = _size(path, tensor, file)
            _check_extent(path, tensor, file, sizes[file])
        value.const_value = LinkedTensor(tensor, file)


def _initializers(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.initializers.values()


def _inside(path: Path, tensor: ir.ExternalTensor) -> str:
    location = os.fspath(tensor.location)
    normal = os.path.normpath(location)
    if not location or os.path.isabs(location) or normal.split(os.sep)[0] == os.pardir:
        raise InputError(
            f"'{path}' keeps the weight '{tensor.name}' in '{location}': expected a file in the graph's own folder;"
            " write the graph again with its weights beside it"
        )
    if reason := stray(path.parent, normal.replace(os.sep, "/")):
        raise InputError(
            f"'{path}' keeps the weight '{tensor.name}' in '{location}', which {reason}: copy the file to its place"
        )
    return normal


def _size(path: Path, tensor: ir.ExternalTensor, file: Path) -> int:
    try:
        with file.open("rb"):
            return file.stat().st_size
    except OSError as error:
        raise InputError(
            f"'{path}' keeps the weight '{tensor.name}' in '{file}', which can't be read ({error.strerror}): put the"
            " file with the weights beside the graph, under that name"
        ) from error


def _check_extent(path: Path, tensor: ir.ExternalTensor, file: Path, size: int) -> None:
    if tensor.dtype in (ir.DataType.UNDEFINED, ir.DataType.STRING):
        raise InputError(
            f"'{path}' keeps the weight '{tensor.name}' in '{file}' and says no type that has bytes: the file is"
            " damaged; export it again"
        )
    begin, length = tensor.offset or 0, tensor.nbytes
    said = length if tensor.length is None else tensor.length
    if begin < 0 or said != length or begin + length > size:
        raise InputError(
            f"'{path}' keeps the weight '{tensor.name}' in bytes {begin} to {begin + length} of '{file}', which has"
            f" {size} (its length is said to be {said}): the file is cut off or another graph's; copy it again"
        )
