"""Small decoder graphs in canonical form, with random weights, and what they compute written in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from lmmprune.facts import Facts

IMAGE, VOCAB = 3, 24
Cache = list[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Layer:
    """What one layer saw: attention ``[H,S,P+S]``, float64."""

    attention: np.ndarray


# (site, the stream [S,C], positions [S], the layer that is scored) -> stream and positions that go on.
Cut = Callable[[str, np.ndarray, np.ndarray, Layer], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class SmallDecoder:
    """Some layers of H heads on Hk key heads of width D; rotary positions, a cache, an image between two texts."""

    layers: int = 3
    heads: int = 2
    kv_heads: int = 1
    width: int = 4
    seed: int = 0

    @property
    def channels(self) -> int:
        return self.heads * self.width

    def facts(self, tokens: int) -> Facts:
        """This decoder behind a tower of three layers that hands over some tokens."""
        return Facts(tokens=tokens, grid=(1, tokens), encoder_layers=3, decoder_layers=self.layers, has_cls=True)

    def weights(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(self.seed)
        c, narrow = self.channels, self.kv_heads * self.width

        def draw(rows: int, columns: int) -> np.ndarray:
            return (rng.standard_normal((rows, columns)) * 0.7 / np.sqrt(rows)).astype(np.float32)

        result = {"embed": rng.standard_normal((VOCAB, c)).astype(np.float32)}
        for layer in range(self.layers):
            sizes = {"q": c, "k": narrow, "v": narrow, "o": c, "fc": c}
            result |= {f"{name}{layer}": draw(c, size) for name, size in sizes.items()}
        return result | {"head": draw(c, VOCAB), "inv_freq": self.frequencies()}

    def frequencies(self) -> np.ndarray:
        return (10.0 ** (-np.arange(0, self.width, 2) / self.width)).astype(np.float32)

    def features(self, tokens: int) -> np.ndarray:
        """[1,N,C] float32."""
        return np.random.default_rng(self.seed + 1).standard_normal((1, tokens, self.channels)).astype(np.float32)

    def graph(self, batch: int = 1) -> ir.Model:
        """input_ids, image_features, position_ids and the cache -> logits of the last position and the grown cache."""
        h, hk, d, c = self.heads, self.kv_heads, self.width, self.channels
        constants = {
            **{f"i{n}": np.array([n], np.int64) for n in (0, 1, 2, 3)},
            **{"zero": np.int64(0), "one": np.int64(1), "image_id": np.int64(IMAGE), "minus": np.array([-1], np.int64)},
            **{"far": np.array([np.iinfo(np.int64).max], np.int64), "flat": np.array([-1, c], np.int64)},
            **{"split": np.array([0, 0, h, d], np.int64), "join": np.array([0, 0, c], np.int64)},
            **{"split_kv": np.array([0, 0, hk, d], np.int64), "axes_row": np.array([0, 1, 3], np.int64)},
            "axes_column": np.array([0, 1, 2], np.int64),
        }
        past, present = cache_names(self.layers)
        nodes = []

        def op(kind: str, inputs: str, output: str, **attributes: object) -> str:
            nodes.append(helper.make_node(kind, inputs.split(), [output], name=f"node_{output}", **attributes))
            return output

        op("Shape", "input_ids", "len1", start=1, end=2)
        op("Squeeze", "len1", "len")
        op("Shape", past[0][0], "past1", start=2, end=3)
        op("Squeeze", "past1", "past_len")
        op("Equal", "input_ids image_id", "is_image")
        op("Cast", "is_image", "counted", to=TensorProto.FLOAT)
        op("CumSum", "counted one", "running")
        op("Cast", "running", "running_int", to=TensorProto.INT64)
        op("Sub", "running_int one", "place")
        op("Clip", "place zero", "place_clipped")
        op("Reshape", "image_features flat", "table")
        op("Gather", "table place_clipped", "images", axis=0)
        op("Gather", "embed input_ids", "words", axis=0)
        op("Unsqueeze", "is_image i2", "mask_image")
        x = op("Where", "mask_image images words", "embeds")
        op("Add", "past_len len", "total")
        op("Range", "zero len one", "steps")
        op("Add", "steps past_len", "row_places")
        op("Range", "zero total one", "columns")
        op("Unsqueeze", "row_places axes_row", "rows4")
        op("Unsqueeze", "columns axes_column", "columns4")
        op("LessOrEqual", "columns4 rows4", "mask")
        op("Unsqueeze", "position_ids i2", "positions3")
        op("Cast", "positions3", "positions_float", to=TensorProto.FLOAT)
        op("Mul", "positions_float inv_freq", "angles")
        op("Cos", "angles", "cos")
        op("Sin", "angles", "sin")
        for i in range(self.layers):
            for name in "qkv":
                op("MatMul", f"{x} {name}{i}", f"{name}_flat{i}")
                op("Reshape", f"{name}_flat{i} {'split' if name == 'q' else 'split_kv'}", f"{name}_split{i}")
                op("Transpose", f"{name}_split{i}", f"{name}_heads{i}", perm=[0, 2, 1, 3])
            op("RotaryEmbedding", f"q_heads{i} cos sin", f"q_turned{i}")
            op("RotaryEmbedding", f"k_heads{i} cos sin", f"k_turned{i}")
            op("Concat", f"{past[i][0]} k_turned{i}", present[i][0], axis=2)
            op("Concat", f"{past[i][1]} v_heads{i}", present[i][1], axis=2)
            op("Attention", f"q_turned{i} {present[i][0]} {present[i][1]} mask", f"mixed{i}", scale=d**-0.5)
            op("Transpose", f"mixed{i}", f"mixed_t{i}", perm=[0, 2, 1, 3])
            op("Reshape", f"mixed_t{i} join", f"joined{i}")
            op("MatMul", f"joined{i} o{i}", f"out{i}")
            op("Add", f"{x} out{i}", f"mid{i}")
            op("MatMul", f"mid{i} fc{i}", f"fc_out{i}")
            x = op("Add", f"mid{i} fc_out{i}", f"hidden{i}")
        op("Slice", f"{x} minus far i1", "last")
        op("MatMul", "last head", "logits")

        def value(name: str, kind: int, *shape: int | str) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, kind, shape)

        graph = helper.make_graph(
            nodes,
            "decoder",
            [
                value("input_ids", TensorProto.INT64, batch, "seq"),
                value("image_features", TensorProto.FLOAT, batch, "image_tokens", c),
                value("position_ids", TensorProto.INT64, batch, "seq"),
                *(value(name, TensorProto.FLOAT, batch, hk, "past", d) for pair in past for name in pair),
            ],
            [
                value("logits", TensorProto.FLOAT, batch, 1, VOCAB),
                *(value(name, TensorProto.FLOAT, batch, hk, "past + seq", d) for pair in present for name in pair),
            ],
            [numpy_helper.from_array(np.asarray(a), name) for name, a in (self.weights() | constants).items()],
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
        onnx.checker.check_model(proto, full_check=True)
        return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto, data_prop=True))

    def no_cache(self) -> Cache:
        empty = np.zeros((self.kv_heads, 0, self.width))
        return [(empty, empty)] * self.layers

    def forward(
        self,
        ids: list[int],
        positions: np.ndarray,
        features: np.ndarray,
        past: Cache,
        *,
        cut: Cut | None = None,
        shift: list[int] | None = None,
    ) -> tuple[np.ndarray, Cache]:
        """Return the last token's logits ``[V]`` and the grown cache; layer l's positions are ``shift[l]`` less."""
        w = {name: array.astype(np.float64) for name, array in self.weights().items()}
        x = w["embed"][ids]
        x[np.array(ids) == IMAGE] = features[0][: ids.count(IMAGE)]
        present = []
        if cut is not None:
            x, positions = cut("llm_input_0", x, positions, Layer(np.zeros((0, 0, 0))))
        for i in range(self.layers):
            length = len(x)
            at = positions - (shift[i] if shift else 0)
            a, k = self.attention(i, x, at, past[i][0])
            v = np.concatenate([past[i][1], self._heads(x @ w[f"v{i}"])], axis=1)
            present.append((k, v))
            x = (
                x
                + (a @ np.repeat(v, self.heads // self.kv_heads, axis=0)).transpose(1, 0, 2).reshape(length, -1)
                @ w[f"o{i}"]
            )
            if cut is not None:
                x, positions = cut(f"llm_layer_{i}", x, positions, Layer(a))
            x = x + x @ w[f"fc{i}"]
            if cut is not None:
                x, positions = cut(f"llm_input_{i + 1}", x, positions, Layer(a))
        return x[-1] @ w["head"], present

    def attention(
        self, layer: int, x: np.ndarray, positions: np.ndarray, past: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what a layer's queries give to its keys ``[H,S,P+S]``, and these keys ``[Hk,P+S,D]``."""
        w = {name: self.weights()[f"{name}{layer}"].astype(np.float64) for name in "qk"}
        q, k = (self._turned(self._heads(x @ w[name]), positions) for name in "qk")
        k = k if past is None else np.concatenate([past, k], axis=1)
        logits = q @ np.repeat(k, self.heads // self.kv_heads, axis=0).transpose(0, 2, 1) / np.sqrt(self.width)
        seen = np.arange(k.shape[1])[None] <= (np.arange(len(x)) + k.shape[1] - len(x))[:, None]
        a = np.exp(np.where(seen, logits, -np.inf))
        return a / a.sum(-1, keepdims=True), k

    def _heads(self, rows: np.ndarray) -> np.ndarray:
        return rows.reshape(len(rows), -1, self.width).transpose(1, 0, 2)

    def _turned(self, heads: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Rotate ``[H,S,D]`` by its positions, the two halves of D against each other."""
        angles = positions[:, None] * self.frequencies().astype(np.float64)[None]
        first, second = np.split(heads, 2, axis=-1)
        cos, sin = np.cos(angles), np.sin(angles)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def cache_names(layers: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the (key, value) names of every layer's past and present."""
    past = [(f"past_key_values.{i}.key", f"past_key_values.{i}.value") for i in range(layers)]
    return past, [(f"present.{i}.key", f"present.{i}.value") for i in range(layers)]


def feeds(
    decoder: SmallDecoder, ids: list[int], positions: np.ndarray, features: np.ndarray, past: Cache
) -> dict[str, np.ndarray]:
    """Return the inputs of the graph for what ``forward`` takes."""
    names, _ = cache_names(decoder.layers)
    cache = {
        name: array[None].astype(features.dtype)
        for pair, arrays in zip(names, past, strict=True)
        for name, array in zip(pair, arrays, strict=True)
    }
    return {"input_ids": np.array([ids]), "position_ids": positions[None], "image_features": features, **cache}


def grown(decoder: SmallDecoder, found: dict[str, np.ndarray]) -> Cache:
    """Return the cache that the graph gives."""
    _, names = cache_names(decoder.layers)
    return [(found[key][0], found[value][0]) for key, value in names]
