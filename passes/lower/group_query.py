"""Give attention and cache of a decoder to ONNX Runtime's one kernel for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lmmprune.names import CACHE_LENGTH, GROUP_QUERY, MICROSOFT
from lmmprune.passes.graph.builder import Builder
from lmmprune.passes.graph.graph_pass import GraphPass
from lmmprune.passes.graph.refusals import Broken, Refused
from lmmprune.passes.lower.cache_inputs import check_cuts, counts_of, join_of, with_length
from lmmprune.passes.lower.causal_mask import is_causal
from lmmprune.passes.lower.lower_attention import HIDDEN

_MASK = 3  # input of Attention


@dataclass(frozen=True, kw_only=True)
class GroupQuery(GraphPass):
    """Join a causal Attention with the Concats of its cache to ``GroupQueryAttention`` of com.microsoft.

    Before: ``present = Concat(past [B,Hk,P,D], new [B,Hk,S,D])`` for keys and values, ``Attention(q [B,H,S,D], keys,
    values, mask)`` with the causal mask of P + S keys, grouped heads repeated
    After: ``y, present, present = GroupQueryAttention(q [B,S,H*D], k, v [B,S,Hk*D], past [B,Hk,P,D], past, total - 1,
    total)``

    The kernel writes new keys and values behind those that the cache holds, in place where a run-time gives past and
    present the same memory, which then may have room for more; ``total`` is the input ``cache_length`` less what the
    cuts before the layer have taken away, and S. With memory of its own, present is as long as ``Concat`` makes it,
    where past holds ``cache_length`` tokens and no more. Blocks of keys that no query sees are skipped, grouped heads
    aren't repeated, and no mask is made; where padding is hidden, too, that mask is added to the logits.

    Attributes:
        past: Names of the inputs that are the keys and the values of each layer, ``[B,Hk,P,D]``.
        removed: How many tokens of the sequence are gone when it reaches the attention of each layer.
        capacity: Tokens that the layers before any cut have room for; None: any number.

    Reference: ONNX Runtime's contrib operator GroupQueryAttention; Ainslie et al. 2023, arXiv 2305.13245.
    """

    past: tuple[tuple[str, str], ...]
    removed: tuple[int, ...]
    capacity: int | None = None

    def requires(self, model: ir.Model) -> None:
        """Check that every attention is causal, joins its cache by concatenation, and keeps nothing else of it."""
        check_cuts(self.past, self.removed, self.capacity)
        nodes = [node for node in model.graph if node.op_type == "Attention"]
        if len(nodes) != len(self.past):
            raise Refused(f"{len(nodes)} Attention nodes, a cache of {len(self.past)} layers: expected as many")
        layers = self._layers(model)
        alike: dict[int, set[ir.Value]] = {}
        for layer in layers:
            alike.setdefault(layer.removed, set()).update(layer.past)
        for layer in layers:
            _check(layer, alike[layer.removed])

    def suits(self, model: ir.Model) -> bool:
        """Say whether a graph can be rewritten: what is in half precision, say, keeps its Attention."""
        try:
            self.requires(model)
        except Refused:
            return False
        return True

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite."""
        layers = self._layers(model)
        length = ir.Value(name=CACHE_LENGTH, shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
        b = Builder("lmmprune/cache", score=False)
        lengths = {
            count: b.op("Max", b.op("Sub", length, [count]), [0]) if count else length for count in set(self.removed)
        }
        b.prepend_to(model.graph)
        model.graph.inputs.append(length)
        written = _Written()
        for layer in layers:
            for past in layer.past:
                # It may have room for more than it holds.
                for counted in counts_of(past):
                    ir.convenience.replace_all_uses_with(counted, lengths[layer.removed])
            if self.capacity is not None:
                _fix(layer, self.capacity - layer.removed)
            _replace(model.graph, layer, lengths[layer.removed], written)
        RemoveUnusedNodesPass()(model)
        model.graph.opset_imports[MICROSOFT] = 1
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Check that nothing but its attention reads a cache."""
        inputs = {value.name: value for value in model.graph.inputs}
        for name in (name for pair in self.past for name in pair):
            users = sorted(node.op_type for node, _ in inputs[name].uses())
            if users != [GROUP_QUERY]:
                raise Broken(f"'{name}' is read by {', '.join(users)}, expected one {GROUP_QUERY} alone")

    def _layers(self, model: ir.Model) -> list[_Layer]:
        inputs = {value.name: value for value in model.graph.inputs}
        return [
            _layer(inputs[keys], inputs[values], removed)
            for (keys, values), removed in zip(self.past, self.removed, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """One attention with its cache: the node, and for keys and values what was there, the Concat, and what is new."""

    node: ir.Node
    past: tuple[ir.Value, ir.Value]
    joins: tuple[ir.Node, ir.Node]
    new: tuple[ir.Value, ir.Value]
    removed: int


def _layer(keys: ir.Value, values: ir.Value, removed: int) -> _Layer:
    joins, readers, new = [], [], []
    for index, past in enumerate((keys, values), start=1):
        joins.append(join_of(past))
        added = joins[-1].inputs[1]
        assert added is not None
        new.append(added)
        readers.append(_reader(joins[-1].outputs[0], index))
    if readers[0] is not readers[1]:
        raise Refused(f"'{keys.name}' and '{values.name}' are read by two attentions, expected one")
    return _Layer(
        node=readers[0], past=(keys, values), joins=(joins[0], joins[1]), new=(new[0], new[1]), removed=removed
    )


def _reader(joined: ir.Value, index: int) -> ir.Node:
    """Follow a cache over repeated heads to the one Attention that reads it."""
    value = joined
    for op_type in ("Unsqueeze", "Expand", "Reshape", "Attention"):
        users = [(node, place) for node, place in value.uses() if node.op_type != "Shape"]
        if len(users) == 1 and users[0] in [(users[0][0], index)] and users[0][0].op_type == "Attention":
            return users[0][0]
        if len(users) != 1 or users[0][1] != 0 or users[0][0].op_type != op_type:
            what = ", ".join(node.op_type for node, _ in users) or "nothing"
            raise Refused(f"'{value.name}' is read by {what}, expected one attention alone")
        node = users[0][0]
        if op_type == "Unsqueeze" and _numbers(node.inputs[1]) != [2]:
            raise Refused(f"'{node.name}' doesn't put an axis behind the heads: they are repeated another way")
        value = node.outputs[0]
    raise AssertionError("the last operator is an Attention or refused")


def _check(layer: _Layer, alike: set[ir.Value]) -> None:
    node = layer.node
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        raise Refused(f"'{node.name}' gives more than its result to others")
    if any(value is not None for value in node.inputs[_MASK + 1 :]):
        raise Refused(f"'{node.name}' joins a cache itself")
    if node.attributes.get_float("softcap", 0.0):
        raise Refused(f"'{node.name}' has a softcap, which wasn't tried")
    for past in layer.past:
        counts_of(past)
    q = node.inputs[0]
    assert q is not None
    if any(value.dtype != ir.DataType.FLOAT for value in (q, *layer.new, *layer.past)):
        raise Refused(f"'{node.name}' isn't in float32")
    (_, heads, width), key_heads = _heads(q), _heads(layer.new[0])[1]
    widths = {width, *(_heads(value)[2] for value in layer.new)}
    if len(widths) > 1 or heads % key_heads or width % 8:
        raise Refused(
            f"'{node.name}' has {heads} heads on {key_heads}, of widths {sorted(widths)}: expected one width, a"
            " multiple of 8"
        )
    mask = node.inputs[_MASK] if len(node.inputs) > _MASK else None
    if node.attributes.get_int("is_causal", 0) or mask is None:
        raise Refused(f"'{node.name}' has no mask, expected the causal one behind a cache")
    if not (is_causal(mask, alike) or any(is_causal(part, alike) for part in _parts(mask))):
        raise Refused(f"the mask of '{node.name}' is another than the causal one behind a cache")


def _parts(mask: ir.Value) -> list[ir.Value]:
    """Return the masks of which all have to let a query see a key."""
    node = mask.producer()
    return [value for value in node.inputs if value is not None] if node is not None and node.op_type == "And" else []


def _heads(value: ir.Value) -> tuple[int, int, int]:
    """Return rows, heads and their width of ``[B,H,S,D]``."""
    dims = None if value.shape is None or len(value.shape) != 4 else value.shape
    found = [] if dims is None else [dim for axis, dim in enumerate(dims) if axis != 2 and isinstance(dim, int)]
    if len(found) != 3:
        raise Refused(f"'{value.name}' has the shape {value.shape}, expected [B,H,S,D]")
    return found[0], found[1], found[2]


@dataclass(frozen=True)
class _Written:
    """What several layers read: by the tokens removed before, each row's last place and their number; masks as sums."""

    totals: dict[int, tuple[ir.Value, ir.Value]] = field(default_factory=dict)
    hidden: dict[ir.Value, ir.Value] = field(default_factory=dict)


def _replace(graph: ir.Graph, layer: _Layer, length: ir.Value, written: _Written) -> None:
    node, (q, _, _, mask, *_) = layer.node, layer.node.inputs
    assert q is not None
    assert mask is not None
    (rows, heads, width), key_heads = _heads(q), _heads(layer.new[0])[1]
    b = Builder(f"{node.name}/group_query", score=False)
    flat = [_flat(b, value) for value in (q, *layer.new)]
    if layer.removed not in written.totals:
        total = b.op("Cast", b.op("Add", length, b.op("Shape", flat[0], start=1, end=2)), to=ir.DataType.INT32)
        # All rows are filled alike; the operator wants a place for each.
        last = b.op("Expand", b.op("Sub", total, np.array([1], np.int32)), [rows])
        written.totals[layer.removed] = last, total
    bias: list[ir.Value | None] = []
    if _parts(mask):
        if mask not in written.hidden:
            written.hidden[mask] = b.op("Where", mask, np.float32(0), np.float32(HIDDEN))
        bias = [None, None, None, written.hidden[mask]]
    attended, *present = b.ops(
        GROUP_QUERY,
        3,
        *flat,
        *layer.past,
        *written.totals[layer.removed],
        *bias,
        num_heads=heads,
        kv_num_heads=key_heads,
        scale=node.attributes.get_float("scale", width**-0.5),
        domain=MICROSOFT,
    )
    made = attended.producer()
    assert made is not None
    made.name = f"{node.name}/group_query"
    made.metadata_props.update(node.metadata_props)
    attended.shape, attended.type = ir.Shape([q.shape[0], q.shape[2], heads * width]), q.type  # type: ignore[index]
    _hand_on(b, node.outputs[0], attended, heads, width)
    b.insert_before(graph, node)
    for join, value in zip(layer.joins, present, strict=True):
        old = join.outputs[0]
        value.shape, value.type = old.shape, old.type
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        value.name, old.name = old.name, None


def _flat(b: Builder, value: ir.Value) -> ir.Value:
    """Return ``[B,H,S,D]`` as ``[B,S,H*D]``: what is there before heads are split, turned where it is turned."""
    rows, heads, width = _heads(value)
    node = value.producer()
    shape = ir.Shape([rows, value.shape[2], heads * width])  # type: ignore[index]
    if node is not None and node.op_type == "Transpose" and _order(node) == [0, 2, 1, 3]:
        split = node.inputs[0]
        assert split is not None
        found = b.op("Reshape", split, [0, 0, heads * width])
    elif node is not None and node.op_type == "RotaryEmbedding" and len(value.uses()) == 1:
        source, *angles = node.inputs
        assert source is not None
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        found = b.op("RotaryEmbedding", _flat(b, source), *angles, **{**attributes, "num_heads": heads})
    else:
        found = b.op("Reshape", b.op("Transpose", value, perm=[0, 2, 1, 3]), [0, 0, heads * width])
    found.shape, found.type = shape, value.type
    return found


def _fix(layer: _Layer, capacity: int) -> None:
    """Give a layer's cache a length, before and behind the run."""
    for value in (*layer.past, *(join.outputs[0] for join in layer.joins)):
        value.shape = with_length(value, capacity)


def _hand_on(b: Builder, old: ir.Value, attended: ir.Value, heads: int, width: int) -> None:
    """Put ``[B,S,H*D]`` in the place of ``[B,H,S,D]``, or of what it is turned into."""
    merged = _merged(old, heads * width)
    if merged is not None:
        merged.replace_all_uses_with(attended)
        return
    split = b.op("Transpose", b.op("Reshape", attended, [0, 0, heads, width]), perm=[0, 2, 1, 3])
    split.shape, split.type = old.shape, old.type
    old.replace_all_uses_with(split)


def _merged(value: ir.Value, width: int) -> ir.Value | None:
    """Return ``[B,S,H*D]`` where that is all that is made of ``[B,H,S,D]``."""
    for op_type in ("Transpose", "Reshape"):
        users = [node for node, _ in value.uses()]
        if len(users) != 1 or users[0].op_type != op_type:
            return None
        if op_type == "Transpose" and _order(users[0]) != [0, 2, 1, 3]:
            return None
        value = users[0].outputs[0]
    dims = [] if value.shape is None else list(value.shape)
    return value if len(dims) == 3 and dims[2] == width else None


def _order(node: ir.Node) -> list[int]:
    return list(node.attributes.get_ints("perm", ()))


def _numbers(value: ir.Value | None) -> Sequence[int]:
    found = None if value is None else ir.convenience.get_const_tensor(value)
    return [] if found is None else found.numpy().ravel().tolist()
