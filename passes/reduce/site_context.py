"""What a rule sees at a site: the tokens that arrive, the attention that is scored, and the spans of the sequence.

Shapes: B batch, T tokens of the sequence, n visual tokens among them, H heads, Hk key heads, G = H / Hk, D head width.
Where a visual token is a group of g patches (behind a pixel shuffle), the encoder's sequence has n*g rows for them, and
what is read off it for a token is the mean over its patches.
In the decoder T isn't known when the graph is written, and a decode step has T = 1: spans are cut at its end there, so
that a step computes one row instead of n (what it computes is not used; see ``cut_decoder``). In front of all layers
the choice has a graph of its own, which sees prompts only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir

from lmmprune.names import READS_TEXT
from lmmprune.passes.find.layers import Layer
from lmmprune.passes.graph.builder import Builder
from lmmprune.passes.graph.refusals import Refused
from lmmprune.passes.graph.shapes import is_constant, static_shape

FLOAT = int(ir.DataType.FLOAT)
INT64 = int(ir.DataType.INT64)
END = np.iinfo(np.int64).max

Rows = Literal["all", "cls", "visual", "patches", "text", "onward", "last"]


@dataclass(frozen=True, kw_only=True)
class SiteContext:
    """A site as a rule sees it.

    Attributes:
        b: Tape for new nodes.
        name: The site.
        layer: The layer whose attention is scored (at the vision output the last one before the features).
        attended: Whether an attention lies before the site; else scores are of what is cut, and reading the layer is
            refused.
        layers: All layers of the graph.
        depth: Layers that count (those before the features; all of them in a decoder).
        stream: ``[B,T,C]``, what is cut.
        visual: ``[B,n,C]`` the visual tokens (in a decode step: one row).
        batch: B.
        tokens: n.
        first: Row of the first visual token, or of the first patch.
        tiles: Tower images per picture: what the layers hold has B * tiles rows, each with patches of its own.
        has_cls: Whether row 0 is a CLS token.
        grid: Tokens, rows and columns, before any cut.
        members: ``[n,g]``, the patches of each token, those of all tiles one after the other; None: each token is the
            patch of its own number.
        origin: ``[B,n]`` int64: the place in the grid (in the decoder: the image token) that a token has.
        sizes: ``[B,n]`` float32, how many patches a token stands for; None: one each.
        embeds: In the decoder: the stream into layer 0 and the row of its first and behind its last visual token.
        ahead: In the decoder, between layers: the layer behind the cut.
        carried: In the decoder: what brings tokens into that layer in front of the cut -> the axis that counts them.
        shared: What a rule's parts wrote for each other, by name.
        alive: In the decoder: scalar bool, whether this is the prefill; None: always.
        prompted: In a graph without decode steps: whether the sequence is prompt and picture.
    """

    b: Builder
    name: str
    layer: Layer
    layers: Sequence[Layer]
    depth: int
    stream: ir.Value
    visual: ir.Value
    batch: int
    tokens: int
    first: int
    has_cls: bool = False
    grid: tuple[int, int]
    members: np.ndarray | None = None
    origin: ir.Value
    sizes: ir.Value | None = None
    embeds: tuple[ir.Value, int, int] | None = None
    ahead: Layer | None = None
    carried: Mapping[ir.Value, int] = field(default_factory=dict)
    alive: ir.Value | None = None
    prompted: bool = False
    tiles: int = 1
    attended: bool = True
    shared: dict[str, tuple[ir.Value, ...]] = field(default_factory=dict, compare=False)

    @property
    def images(self) -> int:
        """Rows of what the layers hold: B * tiles."""
        return self.batch * self.tiles

    @property
    def per_image(self) -> int:
        """Patches of one tower image."""
        return self.patches // self.tiles

    @property
    def group(self) -> int:
        """Patches of a visual token, g."""
        return self.patches // self.tokens

    @property
    def in_decoder(self) -> bool:
        """Whether the sequence is prompt and picture, not the picture alone."""
        return self.decodes or self.prompted

    @property
    def decodes(self) -> bool:
        """Whether the graph also runs decode steps, which have fewer tokens than the spans of a prompt."""
        return self.alive is not None

    @property
    def patches(self) -> int:
        """Patches that the visual tokens are made of, n*g, those of all tiles."""
        return self.tokens if self.members is None else self.members.size

    def at_layer(self, index: int) -> SiteContext:
        """Return the same site, seen by another layer of the graph.

        In an encoder of which most layers attend within windows, that is the next one that sees the whole picture.

        Raises:
            Refused: There is no such layer in the graph.
        """
        if not 0 <= index < len(self.layers):
            raise Refused(f"{self.name}: layer {index} isn't in the graph, which has 0..{len(self.layers) - 1}")
        whole = (layer for layer in self.layers[index:] if self.in_decoder or static_shape(layer.q)[0] == self.images)
        return dataclasses.replace(self, layer=next(whole, self.layer))

    def rows(self, value: ir.Value, which: Rows, axis: int, *, stream: bool = False) -> ir.Value:
        """Return some tokens of a value whose ``axis`` counts the sequence's tokens.

        Visual tokens of several patches each are the means over them, in float32; ``patches`` returns the patches,
        ``onward`` the picture and the text behind it.

        Raises:
            Refused: No such rows, or visual tokens of several images (see ``visual_scores`` and ``visual_rows``).
        """
        if which == "all":
            return value
        if which == "visual" and self.members is not None:
            if self.tiles > 1:
                raise Refused(
                    f"{self.name}: the rule reads rows of one image, a picture has {self.tiles} here:"
                    " write it with visual_scores or visual_rows"
                )
            groups = self.b.op("Gather", value, self.members + self.first, axis=axis)
            return self.b.op("ReduceMean", self.b.op("Cast", groups, to=FLOAT), [axis + 1], keepdims=0)
        begin, end = self._span(which)
        move = self.b.stream if stream else self.b.op
        if self.decodes and which in ("visual", "text", "onward"):
            # A decode step has fewer tokens than the span's place: give it its last one.
            b = self.b
            length = b.op("Shape", value, start=axis, end=axis + 1)
            start = b.op("Min", b.constant([begin]), b.op("Sub", length, b.constant([1])))
            rows = move("Slice", value, start, [end], [axis])
            return rows if which == "visual" else reads_text(rows)
        return move("Slice", value, [begin], [end], [axis])

    def _span(self, which: Rows) -> tuple[int, int]:
        if which == "cls":
            if not self.has_cls:
                raise Refused(f"{self.name}: this encoder has no CLS token")
            return 0, 1
        if which in ("visual", "patches"):
            return self.first, self.first + self.per_image
        if not self.in_decoder:
            raise Refused(f"{self.name}: there is no text in the encoder")
        return {"text": (self.first + self.tokens, END), "onward": (self.first, END)}.get(which, (-1, END))

    def visual_scores(self, value: ir.Value) -> ir.Value:
        """Return the visual tokens' entries ``[B,n]`` of scores of whole sequences ``[images,T]``."""
        return self.rows(value, "visual", 1) if self.tiles == 1 else self._together(value, rank=2)

    def visual_rows(self, value: ir.Value) -> ir.Value:
        """Return the visual tokens' rows ``[B,n,C]`` of whole sequences ``[images,T,C]``."""
        return self.rows(value, "visual", 1) if self.tiles == 1 else self._together(value, rank=3)

    def _together(self, value: ir.Value, rank: int) -> ir.Value:
        """Put the patches of all tiles together, then those of each token."""
        b = self.b
        assert self.members is not None
        joined = b.op("Reshape", self.rows(value, "patches", 1), [self.batch, self.patches, -1][:rank])
        if self.group == 1:
            return b.op("Gather", joined, b.constant(self.members[:, 0]), axis=1)
        groups = b.op("Gather", joined, b.constant(self.members), axis=1)
        return b.op("ReduceMean", b.op("Cast", groups, to=FLOAT), [2], keepdims=0)

    def queries(self, which: Rows) -> ir.Value:
        """Return ``[images,H,rows,D]`` float32, the scale applied to them."""
        rows = self.rows(self._scored().q, which, 2)
        # The scale goes to the queries: rows*D products instead of rows*T, and the order that TensorRT fuses.
        scaled = self.b.op("Mul", self.b.op("Cast", rows, to=FLOAT), np.float32(self.layer.scale))
        return reads_text(scaled) if which == "all" and self.decodes else scaled

    def keys(self, which: Rows) -> ir.Value:
        """Return ``[images,Hk,rows,D]`` float32."""
        return self.b.op("Cast", self.rows(self._scored().k, which, 2), to=FLOAT)

    def _scored(self) -> Layer:
        if not self.attended:
            raise Refused(
                f"{self.name}: no attention lies before it: score the tokens themselves, or cut at llm_input_1"
            )
        return self.layer

    @property
    def head_axes(self) -> list[int]:
        """The axes that count heads in what ``logits`` and ``attention`` return."""
        return [1, 2] if self.layer.heads[0] != self.layer.heads[1] else [1]

    def logits(self, queries: ir.Value, keys: ir.Value, *, few: bool = False) -> ir.Value:
        """Return scaled products ``[B,H,rows,columns]``, or ``[B,Hk,G,rows,columns]`` for grouped heads.

        Args:
            queries: From ``queries``.
            keys: From ``keys``.
            few: Whether there are far fewer rows than columns: then they are turned, and not all keys.
        """
        b, (heads, key_heads, width) = self.b, self.layer.heads
        grouped = heads != key_heads
        turned = [0, 1, 2, 4, 3] if grouped else [0, 1, 3, 2]
        if grouped:
            queries = b.op("Reshape", queries, [self.images, key_heads, heads // key_heads, -1, width])
        if few:
            keys = b.op("Unsqueeze", keys, [2]) if grouped else keys
            products = b.op("MatMul", keys, b.op("Transpose", queries, perm=turned))
            return b.op("Transpose", products, perm=turned)
        keys = b.op("Transpose", keys, perm=[0, 1, 3, 2])
        return b.op("MatMul", queries, b.op("Unsqueeze", keys, [2]) if grouped else keys)

    def attention(self, which: Rows) -> ir.Value:
        """Return the attention of some queries on all tokens, shaped as ``logits``; rows sum to one."""
        logits = self.logits(self.queries(which), self.keys("all"), few=which in ("cls", "last"))
        return self.b.op("Softmax", self._masked(logits, which), axis=-1)

    def attention_of(self, queries: ir.Value) -> ir.Value:
        """Return the attention of queries ``[B,H,rows,D]`` (scaled) on all tokens of an encoder."""
        mask = list(self.layer.node.inputs)[3:4]
        if mask and mask[0] is not None and is_constant(mask[0]):
            raise Refused(
                f"{self.name}: the rule asks for the attention of tokens that it chose, and this tower adds a number to"
                " the logits of each pair of tokens (relative positions): use a method that scores all of them"
            )
        return self.b.op("Softmax", self._masked(self.logits(queries, self.keys("all"), few=True), "all"), axis=-1)

    def _masked(self, logits: ir.Value, which: Rows) -> ir.Value:
        inputs = self.layer.node.inputs
        mask = inputs[3] if len(inputs) > 3 else None
        if mask is None:
            if self.in_decoder:
                raise Refused(f"'{self.layer.node.name}' has no mask input: expected the causal mask as a value")
            return logits
        b = self.b
        if self.in_decoder:
            mask = self.rows(mask, which, 2)
            # Scores count in the prefill only, whose tokens are the first columns, however long a cache is.
            count = b.op("Shape", self.layer.k, start=2, end=3)
            mask = b.op("Slice", mask, [0], count, [3])
        elif mask.shape is None or mask.shape[2] != 1:
            mask = self.rows(mask, which, 2)
        if len(self.head_axes) == 2:
            mask = b.op("Unsqueeze", mask, [1])
        if inputs[3] is not None and inputs[3].dtype == ir.DataType.BOOL:
            return b.op("Where", mask, logits, np.float32(-np.inf))
        return b.op("Add", logits, b.op("Cast", mask, to=FLOAT))

    def flat_queries(self, which: Rows) -> ir.Value:
        """Return ``[B,rows,Hk*D]`` float32 whose product with ``flat_keys`` is the mean of the logits over the heads.

        One product of all heads side by side instead of one per head.
        """
        heads, key_heads, width = self.layer.heads
        b = self.b
        queries = b.op("Mul", self.queries(which), np.float32(1 / heads))
        if heads != key_heads:
            grouped = b.op("Reshape", queries, [self.images, key_heads, heads // key_heads, -1, width])
            queries = b.op("ReduceSum", grouped, [2], keepdims=0)
        return self._side_by_side(queries)

    def flat_keys(self, which: Rows) -> ir.Value:
        """Return the keys of all heads side by side, ``[B,rows,Hk*D]`` float32."""
        return self._side_by_side(self.keys(which))

    def _side_by_side(self, value: ir.Value) -> ir.Value:
        _, key_heads, width = self.layer.heads
        turned = self.b.op("Transpose", value, perm=[0, 2, 1, 3])
        return self.b.op("Reshape", turned, [0, 0, key_heads * width])

    def patches_of(self, tokens: ir.Value, count: int) -> ir.Value:
        """Return the patches ``[B,count*g]`` of tokens ``[B,count]``."""
        if self.members is None:
            return tokens
        groups = self.b.op("Gather", self.members, tokens, axis=0)
        return self.b.op("Reshape", groups, [self.batch, count * self.members.shape[1]])

    def mean_keys(self) -> ir.Value:
        """Return the head-mean keys of the visual tokens ``[B,n,D]``, float32."""
        if self.tiles > 1:
            return self.visual_rows(self.b.op("ReduceMean", self.keys("all"), [1], keepdims=0))
        return self.b.op("ReduceMean", self.keys("visual"), [1], keepdims=0)

    def gather(self, value: ir.Value, indices: ir.Value, count: int) -> ir.Value:
        """Return the rows ``indices [B,count]`` of ``value [B,n,C]``.

        In a decode step the indices are cut at the value's end.
        """
        return gather_tokens(self.b, value, self._inside(value, indices), (self.batch, self.tokens, count))

    def gather_entries(self, value: ir.Value, indices: ir.Value, count: int) -> ir.Value:
        """Return the entries ``indices [B,count]`` of ``value [B,n]``."""
        rows = self.gather(self.b.op("Unsqueeze", value, [2]), indices, count)
        return self.b.op("Reshape", rows, [self.batch, count])

    def gather_rows(self, value: ir.Value, indices: ir.Value, rows: int, count: int) -> ir.Value:
        """Return the rows ``indices [B,count]`` of any table ``value [B,rows,C]``."""
        return gather_tokens(self.b, value, indices, (self.batch, rows, count))

    def _inside(self, value: ir.Value, indices: ir.Value) -> ir.Value:
        if not self.decodes:
            return indices
        b = self.b
        return b.op("Min", indices, b.op("Sub", b.op("Shape", value, start=1, end=2), b.constant([1])))


def reads_text(value: ir.Value) -> ir.Value:
    """Mark what holds every token of the question, which is more than the question's where rows are padded."""
    node = value.producer()
    assert node is not None
    node.metadata_props[READS_TEXT] = "1"
    return value


def gather_tokens(
    b: Builder, table: ir.Value, indices: ir.Value, sizes: tuple[int, int, int], *, stream: bool = False
) -> ir.Value:
    """Return ``table[b, indices[b, r]]``.

    Args:
        b: Tape.
        table: ``[B,T,C]``.
        indices: ``[B,R]`` int64.
        sizes: B, T, R.
        stream: Whether the table is the residual stream (and not part of a score, which stays float32).

    Returns:
        ``[B,R,C]``. One Gather on the flattened table: GatherND and GatherElements are slower or missing elsewhere.
    """
    batch, tokens, count = sizes
    move = b.stream if stream else b.op
    if batch == 1:
        return move("Gather", table, b.op("Reshape", indices, [count]), axis=1)
    offsets = np.arange(batch, dtype=np.int64).reshape(-1, 1) * tokens
    flat = move("Reshape", table, [batch * tokens, -1])
    return move("Gather", flat, b.op("Add", indices, offsets), axis=0)
