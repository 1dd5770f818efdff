"""Write Einsum as transpositions and a MatMul."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from lmmprune.passes.graph.builder import Builder
from lmmprune.passes.graph.refusals import Refused
from lmmprune.passes.graph.shapes import is_constant, static_shape
from lmmprune.passes.lower.lower_node import Lowering, LowerOperator, attribute, nodes_of


@dataclass(frozen=True, kw_only=True)
class LowerEinsum(LowerOperator):
    """Write every ``Einsum`` of one or two factors in the operators that the other passes know.

    Before: ``Einsum(q [B,H,T,D], k [B,H,T,D], "bhqd,bhkd->bhqk")``   After: ``MatMul(q, Transpose(k))``

    Before: ``Einsum(x [B,T,C], w [C,H,D], "btc,chd->bthd")``   After: ``Reshape(MatMul(x, Reshape(w)))``

    Letters of both factors and of the result count products, those of both factors alone are summed over in the
    product, those of one factor alone before it.

    Reference: ONNX operator Einsum-12.
    """

    op_type: ClassVar[str] = "Einsum"

    def requires(self, model: ir.Model) -> None:
        """Check that every equation is of that kind."""
        for node in nodes_of(model, "Einsum"):
            _letters(node)

    def rewriter(self) -> Callable[[ir.Graph, Lowering], None]:
        """Return what replaces one node."""
        return _lower


@dataclass
class _Factor:
    """A factor, or what has become of it: a value and the letters of its axes."""

    b: Builder
    value: ir.Value
    letters: list[str]
    shape: list[int]

    def reduced(self, keep: str) -> None:
        """Sum over the letters that aren't in ``keep``."""
        axes = [axis for axis, letter in enumerate(self.letters) if letter not in keep]
        if axes:
            self.value = self.b.op("ReduceSum", self.value, axes, keepdims=0)
            self.shape = [size for axis, size in enumerate(self.shape) if axis not in axes]
            self.letters = [letter for letter in self.letters if letter in keep]

    def ordered(self, letters: Sequence[str]) -> None:
        """Turn the axes into an order."""
        perm = [self.letters.index(letter) for letter in letters]
        if perm != sorted(perm):
            self.value = self.b.op("Transpose", self.value, perm=perm)
            self.letters, self.shape = list(letters), [self.shape[axis] for axis in perm]

    def shaped(self, shape: Sequence[int]) -> None:
        """Join or split axes; their letters mean nothing then."""
        if list(shape) != self.shape:
            self.value, self.shape = self.b.op("Reshape", self.value, list(shape)), list(shape)


def _lower(graph: ir.Graph, new: Lowering) -> None:
    *terms, result = _letters(new.node)
    factors = [
        _Factor(new.b, new.input(index), list(term), list(static_shape(new.input(index))))
        for index, term in enumerate(terms)
    ]
    for index, factor in enumerate(factors):
        factor.reduced("".join([result, *(term for other, term in enumerate(terms) if other != index)]))
    if len(factors) == 1:
        made = factors[0]
    else:
        # A weight belongs on the right: rows of tokens stay rows.
        if is_constant(factors[0].value) and not is_constant(factors[1].value):
            factors.reverse()
        made = _product(factors[0], factors[1], result)
    made.ordered(result)
    if made.value is new.input(0):
        made.value = new.b.op("Identity", made.value)
    new.replace(graph, {0: made.value})


def _product(left: _Factor, right: _Factor, result: str) -> _Factor:
    """Return the sum over the letters of both that aren't in the result; axes as they come."""
    sizes = dict(zip(left.letters, left.shape, strict=True))
    for letter, size in zip(right.letters, right.shape, strict=True):
        sizes[letter] = max(sizes.get(letter, 1), size)
    each = [letter for letter in result if letter in left.letters and letter in right.letters]
    summed = [letter for letter in left.letters if letter in right.letters and letter not in result]
    rows = [letter for letter in left.letters if letter not in right.letters]
    columns = [letter for letter in right.letters if letter not in left.letters]
    left.ordered([*each, *rows, *summed])
    right.ordered([*each, *summed, *columns])
    length = _size(summed, sizes)
    many = len(each)
    # Without letters of both in the result the rows may keep their axes.
    own = left.shape[many : many + len(rows)] if not each and rows else [_size(rows, sizes)]
    left.shaped([*left.shape[:many], *own, length])
    right.shaped([*right.shape[:many], length, _size(columns, sizes)])
    made = _Factor(left.b, left.b.op("MatMul", left.value, right.value), [*each, *rows, *columns], [])
    made.shape = [*(sizes[letter] for letter in each), *own, _size(columns, sizes)]
    made.shaped([sizes[letter] for letter in made.letters])
    return made


def _size(letters: Sequence[str], sizes: dict[str, int]) -> int:
    return int(np.prod([sizes[letter] for letter in letters], dtype=np.int64))


def _letters(node: ir.Node) -> list[str]:
    """Return a letter for every axis of each factor and of the result, an ellipsis written out.

    Raises:
        Refused: There are more than two factors, or one has a letter twice (a diagonal).
    """
    equation = str(attribute(node, "equation", "")).replace(" ", "")
    left, _, result = equation.partition("->")
    terms = left.split(",")
    ranks = [len(static_shape(value)) for value in node.inputs if value is not None]
    free = [letter for letter in string.ascii_letters if letter not in equation]
    spread = [
        rank - len(term.replace("...", "")) if "..." in term else 0 for term, rank in zip(terms, ranks, strict=False)
    ]
    dots = "".join(free[: max(spread, default=0)])
    if "->" not in equation:
        once = [letter for letter in sorted(set(left) - set(",.")) if left.count(letter) == 1]
        result = ("..." if "..." in left else "") + "".join(once)
    # An ellipsis counts from the right.
    written = [term.replace("...", dots[len(dots) - count :]) for term, count in zip(terms, spread, strict=False)]
    written.append(result.replace("...", dots))
    shown = f"'{node.name}' (Einsum '{equation}')"
    if len(terms) > 2 or len(terms) != len(ranks):
        raise Refused(f"{shown} has {len(terms)} factors, expected one or two: write it as products of two")
    plain = all(re.fullmatch("[A-Za-z]*", term) and len(set(term)) == len(term) for term in written)
    if not plain or any(len(term) != rank for term, rank in zip(written, ranks, strict=False)):
        raise Refused(f"{shown} takes a diagonal, or doesn't fit its factors: expected each letter once in a factor")
    return written
