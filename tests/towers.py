"""Small vision graphs in canonical form, with random weights, and what they compute written in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from lmmprune.facts import Facts

# (layer, the stream after attention and residual [B,T,C]) -> the stream that goes on, and what is added to the logits
# of each of its tokens as a key in later layers [B,T'] (None: nothing).
Cut = Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray | None]]


@dataclass(frozen=True)
class Seen:
    """One layer in NumPy: queries and keys ``[B,H,T,D]``, logits and attention ``[B,H,T,T]``, float64."""

    q: np.ndarray
    k: np.ndarray
    logits: np.ndarray
    attention: np.ndarray


@dataclass(frozen=True)
class Tower:
    """B pictures, some patches (and CLS), H heads of width D, some layers; embeddings come in, features go out.

    With ``merge`` a pixel shuffle before the projector puts every square of so many patches a side into one token.
    """

    batch: int = 1
    patches: int = 12
    has_cls: bool = True
    heads: int = 2
    width: int = 4
    layers: int = 3
    seed: int = 0
    # One layer more, behind the features, whose output is ``next_layer_features``.
    next_layer: bool = False
    merge: int = 1

    @property
    def visual(self) -> int:
        """N, the visual tokens."""
        return self.patches // self.merge**2

    @property
    def grid(self) -> tuple[int, int]:
        """As square as the number of tokens allows."""
        rows = max(n for n in range(1, self.visual + 1) if self.visual % n == 0 and n * n <= self.visual)
        return rows, self.visual // rows

    @property
    def members(self) -> list[list[int]]:
        """The patches of each token, row by row of its square."""
        (rows, columns), m = self.grid, self.merge
        squares = [(row * m, column * m) for row in range(rows) for column in range(columns)]
        return [[(y + i) * columns * m + x + j for i in range(m) for j in range(m)] for y, x in squares]

    @property
    def facts(self) -> Facts:
        """A tower before a decoder of four layers."""
        return Facts(
            tokens=self.visual,
            grid=self.grid,
            encoder_layers=self.layers,
            decoder_layers=4,
            has_cls=self.has_cls,
            merge=self.merge,
        )

    @property
    def tokens(self) -> int:
        return self.patches + self.has_cls

    @property
    def channels(self) -> int:
        return self.heads * self.width

    def weights(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(self.seed)
        c = self.channels
        result = {}
        for layer in range(self.layers + self.next_layer):
            for name in ("q", "k", "v", "o", "fc"):
                # Small enough that no softmax saturates: probabilities of exactly zero would tie.
                result[f"{name}{layer}"] = rng.standard_normal((c, c)).astype(np.float32) * np.float32(0.5 / np.sqrt(c))
        result["projector"] = rng.standard_normal((c * self.merge**2, 5)).astype(np.float32)
        return result

    def inputs(self) -> np.ndarray:
        rng = np.random.default_rng(self.seed + 1)
        return rng.standard_normal((self.batch, self.tokens, self.channels)).astype(np.float32)

    def graph(self) -> ir.Model:
        """pixel_values [B,T,C] (embedded already) -> image_features [B,N,5]."""
        shape = [self.batch, self.tokens, self.heads, self.width]
        constants = {
            "split": np.array(shape, np.int64),
            "join": np.array([self.batch, self.tokens, self.channels], np.int64),
            "one": np.array([1], np.int64),
            "end": np.array([self.tokens], np.int64),
        }
        nodes, x = [], "pixel_values"
        for i in range(self.layers + self.next_layer):
            for name in "qkv":
                nodes += [
                    helper.make_node("MatMul", [x, f"{name}{i}"], [f"{name}_flat{i}"], name=f"{name}_proj{i}"),
                    helper.make_node("Reshape", [f"{name}_flat{i}", "split"], [f"{name}_split{i}"]),
                    helper.make_node("Transpose", [f"{name}_split{i}"], [f"{name}_heads{i}"], perm=[0, 2, 1, 3]),
                ]
            attention = [f"q_heads{i}", f"k_heads{i}", f"v_heads{i}"]
            nodes += [
                helper.make_node("Attention", attention, [f"mixed{i}"], name=f"attention{i}", scale=self.width**-0.5),
                helper.make_node("Transpose", [f"mixed{i}"], [f"mixed_t{i}"], perm=[0, 2, 1, 3]),
                helper.make_node("Reshape", [f"mixed_t{i}", "join"], [f"merged{i}"]),
                helper.make_node("MatMul", [f"merged{i}", f"o{i}"], [f"out{i}"], name=f"o_proj{i}"),
                helper.make_node("Add", [x, f"out{i}"], [f"res{i}"]),
                helper.make_node("MatMul", [f"res{i}", f"fc{i}"], [f"fc_out{i}"], name=f"fc_proj{i}"),
                helper.make_node("Add", [f"res{i}", f"fc_out{i}"], [f"hidden{i}"]),
            ]
            x = f"hidden{i}"
        x = f"hidden{self.layers - 1}"
        if self.has_cls:
            nodes.append(helper.make_node("Slice", [x, "one", "end", "one"], ["patches"]))
            x = "patches"
        if self.merge > 1:
            (rows, columns), m = self.grid, self.merge
            constants["squares"] = np.array([self.batch, rows, m, columns, m * self.channels], np.int64)
            constants["tokens"] = np.array([self.batch, self.visual, m * m * self.channels], np.int64)
            nodes += [
                helper.make_node("Reshape", [x, "squares"], ["parted"]),
                helper.make_node("Transpose", ["parted"], ["turned"], perm=[0, 1, 3, 2, 4]),
                helper.make_node("Reshape", ["turned", "tokens"], ["shuffled"]),
            ]
            x = "shuffled"
        nodes.append(helper.make_node("MatMul", [x, "projector"], ["image_features"], name="projector_mm"))
        outputs = [helper.make_tensor_value_info("image_features", TensorProto.FLOAT, [self.batch, self.visual, 5])]
        if self.next_layer:
            nodes.append(helper.make_node("Identity", [f"hidden{self.layers}"], ["next_layer_features"]))
            next_layer = [self.batch, self.tokens, self.channels]
            outputs.append(helper.make_tensor_value_info("next_layer_features", TensorProto.FLOAT, next_layer))
        for node in nodes:
            node.name = node.name or f"node_{node.output[0]}"
        graph = helper.make_graph(
            nodes,
            "tower",
            [
                helper.make_tensor_value_info(
                    "pixel_values", TensorProto.FLOAT, [self.batch, self.tokens, self.channels]
                )
            ],
            outputs,
            [numpy_helper.from_array(array, name) for name, array in (self.weights() | constants).items()],
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
        onnx.checker.check_model(proto, full_check=True)
        return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto, data_prop=True))

    def attentions(self) -> list[np.ndarray]:
        """Post-softmax attention [B,H,T,T] of every layer, float64."""
        return [seen.attention for seen in self.forward()[0]]

    def hidden(self) -> np.ndarray:
        """The encoder's output at the feature layer [B,T,C], float64."""
        return self.forward()[1]

    def features(self) -> np.ndarray:
        """[B,N,5], float64."""
        return self.project(self.shuffled(self.hidden()[:, self.has_cls :]))

    def shuffled(self, patches: np.ndarray) -> np.ndarray:
        """[B,P,C] -> [B,N,m*m*C]."""
        tokens = [
            [np.concatenate([picture[patch] for patch in square]) for square in self.members] for picture in patches
        ]
        return np.array(tokens)

    def project(self, patches: np.ndarray) -> np.ndarray:
        """[B,K,C] -> [B,K,5]."""
        return patches @ self.weights()["projector"].astype(np.float64)

    def forward(self, cut: Cut | None = None) -> tuple[list[Seen], np.ndarray]:
        """Return every layer, the one behind the features too, and the output of the last one before them."""
        w = {name: array.astype(np.float64) for name, array in self.weights().items()}
        x = self.inputs().astype(np.float64)
        layers, hidden, bias = [], x, None
        for i in range(self.layers + self.next_layer):
            shape = (self.batch, x.shape[1], self.heads, self.width)
            q, k, v = ((x @ w[f"{n}{i}"]).reshape(shape).transpose(0, 2, 1, 3) for n in "qkv")
            logits = q @ k.transpose(0, 1, 3, 2) / np.sqrt(self.width)
            if bias is not None:
                logits = logits + bias[:, None, None]
            a = np.exp(logits - logits.max(-1, keepdims=True))
            a /= a.sum(-1, keepdims=True)
            layers.append(Seen(q, k, logits, a))
            x = x + (a @ v).transpose(0, 2, 1, 3).reshape(x.shape) @ w[f"o{i}"]
            if cut is not None:
                x, more = cut(i, x)
                bias = more if more is not None else bias
            x = x + x @ w[f"fc{i}"]
            if i == self.layers - 1:
                hidden = x
        return layers, hidden


def run(model: ir.Model, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a model in ONNX Runtime with its optimizer off."""
    return session(model)(feeds)


def session(model: ir.Model) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Check a model and load it in ONNX Runtime with its optimizer off."""
    import onnxruntime as ort

    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    # One thread: the models are tiny, and the tests may share the machine.
    options.intra_op_num_threads = 1
    loaded = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in loaded.get_outputs()]
    return lambda feeds: dict(zip(names, loaded.run(None, feeds), strict=True))
