"""Take weights as a checkpoint stores them, and let the graph transpose them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import onnx_ir as ir

from lmmprune.lazy import lazy, stored_of
from lmmprune.passes.graph.graph_pass import GraphPass
from lmmprune.passes.graph.refusals import Broken


@dataclass(frozen=True, kw_only=True)
class RestoreTransposes(GraphPass):
    """Undo the transposing of weights that a file holds in their very type.

    Before: ``MatMul(x, w.T [in,out])``   After: ``MatMul(x, Transpose(w [out,in]))``

    Builders and ONNX Runtime fold such a Transpose when they load the graph. What is computed from a weight (INT8,
    another type) stays as it is.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite."""
        found = [value for value in model.graph.initializers.values() if _is_view(value)]
        for value in found:
            stored = stored_of(value)
            assert stored is not None
            assert stored.perm is not None
            assert value.name is not None
            original = _initializer(model, value, stored.shape, dataclasses.replace(stored, perm=None))
            node = ir.node("Transpose", [original], {"perm": list(stored.perm)}, name=f"{value.name}/transpose")
            output = node.outputs[0]
            output.name, output.shape, output.type = f"{value.name}/transposed", value.shape, value.type
            model.graph.insert_before(next(iter(model.graph)), node)
            value.replace_all_uses_with(output)
            del model.graph.initializers[value.name]
        return ir.passes.PassResult(model, modified=bool(found))

    def ensures(self, model: ir.Model) -> None:
        """Check that no such weight is left."""
        for value in model.graph.initializers.values():
            if _is_view(value):
                raise Broken(f"'{value.name}' is still a transposed weight")


def _is_view(value: ir.Value) -> bool:
    stored = stored_of(value)
    return stored is not None and stored.perm is not None and stored.dtype == value.dtype


def _initializer(model: ir.Model, value: ir.Value, shape: tuple[int, ...], stored: object) -> ir.Value:
    name = f"{value.name}/stored"
    assert value.dtype is not None
    tensor = lazy(_unread, dtype=value.dtype, shape=shape, name=name, stored=stored)  # type: ignore[arg-type]  # a Stored
    made = ir.Value(name=name, shape=ir.Shape(shape), type=value.type, const_value=tensor)
    model.graph.register_initializer(made)
    return made


def _unread() -> None:
    raise AssertionError("a shared weight is referred to, never read")
