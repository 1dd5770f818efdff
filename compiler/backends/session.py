"""What the run-time needs of a back end: load a graph, run it by names, keep values where they were made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Value = Any
"""A tensor of the back end, on the host or on its device; only the session that made it may look inside."""


class Session(Protocol):
    """A loaded graph.

    Outputs may stay on the device and can be fed back as inputs, to this session or to another one of the same back
    end, without passing through the host: that is how the key/value cache and the image features travel. A value is
    valid until it is dropped; running again doesn't overwrite it.
    """

    def upload(self, array: NDArray[np.generic]) -> Value:
        """Return a host array as a value of the back end."""
        ...

    def download(self, value: Value) -> NDArray[Any]:
        """Return a value as a host array; don't write to it."""
        ...

    def run(self, feeds: Mapping[str, Value]) -> dict[str, Value]:
        """Run the graph on one value per input name; return all outputs by name, ready for use."""
        ...
