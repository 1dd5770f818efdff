"""A decoder's key/value cache as OpenVINO keeps it: the state of a request, which its attention appends to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


def hold_cache(ov: Any, model: Any, carried: Mapping[str, str]) -> dict[str, str]:
    """Turn inputs and outputs of a model into state, in place; return input -> name of its variable.

    OpenVINO's attention appends to its cache, instead of copying it, where keys and values come through one choice of
    beams and begin as something (2026.4): the only choice is made here, and nothing is what they begin with.

    Args:
        ov: The module ``openvino``.
        model: Read, not compiled.
        carried: Output -> the input that it becomes in the next run, both ``[B, kv_heads, length, head_dim]``.
    """
    from openvino._offline_transformations import apply_make_stateful_transformation

    ops = ov.opset13
    pasts = {past: present for present, past in carried.items()}
    ports = [port for port in model.inputs if port.get_any_name() in pasts]
    beams = ops.constant(np.arange(ports[0].get_partial_shape()[0].get_length(), dtype=np.int32))
    for port in ports:
        readers = port.get_target_inputs()
        chosen = ops.gather(port.get_node(), beams, ops.constant(0, np.int64))
        for reader in readers:
            reader.replace_source_output(chosen.output(0))
    model.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(model, pasts)
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            shape = [dim.get_length() if dim.is_static else 0 for dim in node.get_output_partial_shape(0)]
            zero = ops.constant(0, node.get_output_element_type(0))
            node.set_arguments([ops.broadcast(zero, ops.constant(np.array(shape, np.int64))).output(0)])
    model.validate_nodes_and_infer_types()
    # The transformation names a variable by both.
    return {past: past + present for past, present in pasts.items()}


class State:
    """What one answer keeps in a request.

    Attributes:
        request: Whose state it is.
        runs: How often it ran.
    """

    def __init__(self, request: Any) -> None:
        """Take a request that hasn't run."""
        self.request, self.runs = request, 0
        self._variables = {variable.name: variable for variable in request.query_state()}

    def run(self, feeds: Mapping[str, Any]) -> None:
        """Run the request on its other inputs; what was held before isn't there any more, even if that fails."""
        for name, value in feeds.items():
            self.request.set_tensor(name, value)
        self.runs += 1
        self.request.infer()

    def read(self, variable: str) -> Any:
        """Return a copy of a variable: an ``openvino.Tensor``."""
        return self._variables[variable].state

    def write(self, variable: str, value: Any) -> None:
        """Set a variable to an ``openvino.Tensor``."""
        self._variables[variable].state = value


@dataclass(frozen=True)
class Held:
    """A value that stays in a request until that runs again.

    Attributes:
        state: Where it is.
        variable: Its name there.
        run: After how many runs it was there.
    """

    state: State
    variable: str
    run: int

    @property
    def there(self) -> bool:
        """Whether it still is what the state holds."""
        return self.run == self.state.runs

    def read(self) -> Any:
        """Return a copy: an ``openvino.Tensor``.

        Raises:
            ValueError: The request ran again since.
        """
        if not self.there:
            raise ValueError(f"'{self.variable}' was appended to by a later run: it can't be read as it was")
        return self.state.read(self.variable)
