"""A graph of several rows that is asked about one, or about a few: the rest are copies, and nobody reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmmprune.compiler.backends.session import Session, Value
from lmmprune.compiler.bundle.interface import Graph
from lmmprune.names import PADDING

Array = NDArray[Any]


@dataclass(kw_only=True, eq=False)
class Row:
    """A value of one row ``[1, ...]``, on the host, in a graph of some width, or both.

    Attributes:
        owner: The session that made it.
        array: On the host; None: not fetched yet.
        wide: Rows of a graph -> the value that it is there; row 0 is this one's.
    """

    owner: OneRow
    array: Array | None = None
    wide: dict[int, Value] = field(default_factory=dict)


class OneRow:
    """A session of a graph with B rows; satisfies ``Session`` for values of one row.

    What is uploaded is repeated B times when the graph is run, and row 0 is what is downloaded. Values that go from run
    to run, as caches do, stay wide: nothing is copied.

    Attributes:
        session: Of the graph itself, for whoever has B rows.
        rows: B.
    """

    def __init__(self, session: Session, graph: Graph, rows: int) -> None:
        """Wrap a session.

        Args:
            session: Of the graph.
            graph: Its signature.
            rows: B; 1 for a graph beside such ones.
        """
        self.session, self.rows = session, rows
        self._inputs = {tensor.name: tensor.shape for tensor in graph.inputs}

    def upload(self, array: NDArray[np.generic]) -> Row:
        """Return a host array of one row (or of B equal ones) as a value."""
        return Row(owner=self, array=array)

    def download(self, value: Row) -> Array:
        """Return a value of one row as a host array; don't write to it."""
        if value.array is None:
            [wide] = value.wide.values()
            value.array = value.owner.session.download(wide)[:1]
        return value.array

    def run(self, feeds: Mapping[str, Row]) -> dict[str, Row]:
        """Run the graph on copies of one row."""
        given = {name: self._wide(name, value) for name, value in feeds.items()}
        if PADDING in self._inputs and PADDING not in given:
            given[PADDING] = self.session.upload(np.zeros(self.rows, np.int64))
        outputs = self.session.run(given)
        return {name: Row(owner=self, wide={self.rows: value}) for name, value in outputs.items()}

    def run_rows(self, feeds: Sequence[Mapping[str, Row]]) -> list[dict[str, Row]]:
        """Run the graph once on up to B rows; what they make lies on the host.

        Args:
            feeds: The inputs of each row. Where there are fewer than B, copies of the last fill the graph up.
        """
        given = {name: stack([self.download(one[name]) for one in feeds], self.rows) for name in feeds[0]}
        outputs = self.session.run({name: self.session.upload(array) for name, array in given.items()})
        arrays = {name: self.session.download(value) for name, value in outputs.items()}
        return [
            {name: Row(owner=self, array=array[row : row + 1]) for name, array in arrays.items()}
            for row in range(len(feeds))
        ]

    def _wide(self, name: str, value: Row) -> Value:
        if self.rows not in value.wide:
            array = repeat(self.download(value), self._inputs.get(name, ()), self.rows)
            value.wide[self.rows] = self.session.upload(array)
        return value.wide[self.rows]


def run_repeated(
    run: Callable[[Mapping[str, Array]], Mapping[str, Array]], graph: Graph, feeds: Mapping[str, Array], rows: int
) -> dict[str, Array]:
    """Run a graph of B rows in host memory on copies of one, and return what it makes of that.

    Args:
        run: Runs it.
        graph: Its signature.
        feeds: Of one row.
        rows: B; with 1 the graph is run as it is.
    """
    if rows == 1:
        return dict(run(feeds))
    shapes = {tensor.name: tensor.shape for tensor in graph.inputs}
    given = {name: repeat(array, shapes.get(name, ()), rows) for name, array in feeds.items()}
    if PADDING in shapes:
        given.setdefault(PADDING, np.zeros(rows, np.int64))
    return {name: array[:1] for name, array in run(given).items()}


def repeat(array: Array, shape: Sequence[int | str], rows: int) -> Array:
    """Return an array of one row B times; one that has all rows, or none, as it is.

    Args:
        array: ``[1, ...]``; positions with a row each for frame, row and column are ``[3,1,T]``.
        shape: Of the graph's input.
        rows: B.
    """
    for axis, size in enumerate(shape):
        if size == rows and array.shape[axis] == 1:
            return np.repeat(array, rows, axis=axis)
    return array


def stack(arrays: Sequence[Array], rows: int, axis: int = 0) -> Array:
    """Return arrays of one row each as one of B rows; where there are fewer, the last is repeated."""
    return np.concatenate([*arrays, *[arrays[-1]] * (rows - len(arrays))], axis=axis)
