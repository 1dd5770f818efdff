"""Small vision graphs in canonical form, with random weights, and what they compute written in NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper


@dataclass(frozen=True)
class Tower:
    """B pictures, N patches (and CLS), H heads of width D, some layers; embeddings come in, features go out."""

    batch: int = 1
    patches: int = 12
    has_cls: bool = True
    heads: int = 2
    width: int = 4
    layers: int = 3
    seed: int = 0

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
        for layer in range(self.layers):
            for name in ("q", "k", "v", "o", "fc"):
                # Small enough that no softmax saturates: probabilities of exactly zero would tie.
                result[f"{name}{layer}"] = rng.standard_normal((c, c)).astype(np.float32) * np.float32(0.5 / np.sqrt(c))
        result["projector"] = rng.standard_normal((c, 5)).astype(np.float32)
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
        for i in range(self.layers):
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
        if self.has_cls:
            nodes.append(helper.make_node("Slice", [x, "one", "end", "one"], ["patches"]))
            x = "patches"
        nodes.append(helper.make_node("MatMul", [x, "projector"], ["image_features"], name="projector_mm"))
        graph = helper.make_graph(
            nodes,
            "tower",
            [
                helper.make_tensor_value_info(
                    "pixel_values", TensorProto.FLOAT, [self.batch, self.tokens, self.channels]
                )
            ],
            [helper.make_tensor_value_info("image_features", TensorProto.FLOAT, [self.batch, self.patches, 5])],
            [numpy_helper.from_array(array, name) for name, array in (self.weights() | constants).items()],
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
        onnx.checker.check_model(proto, full_check=True)
        return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto, data_prop=True))

    def attentions(self) -> list[np.ndarray]:
        """Post-softmax attention [B,H,T,T] of every layer, float64."""
        return self._run()[0]

    def features(self) -> np.ndarray:
        """[B,N,5], float64."""
        return self._run()[1]

    def _run(self) -> tuple[list[np.ndarray], np.ndarray]:
        w = {name: array.astype(np.float64) for name, array in self.weights().items()}
        x = self.inputs().astype(np.float64)
        shape = (self.batch, self.tokens, self.heads, self.width)
        attentions = []
        for i in range(self.layers):
            q, k, v = ((x @ w[f"{n}{i}"]).reshape(shape).transpose(0, 2, 1, 3) for n in "qkv")
            logits = q @ k.transpose(0, 1, 3, 2) / np.sqrt(self.width)
            a = np.exp(logits - logits.max(-1, keepdims=True))
            a /= a.sum(-1, keepdims=True)
            attentions.append(a)
            x = x + (a @ v).transpose(0, 2, 1, 3).reshape(x.shape) @ w[f"o{i}"]
            x = x + x @ w[f"fc{i}"]
        return attentions, x[:, self.has_cls :] @ w["projector"]


def run(model: ir.Model, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a model in ONNX Runtime with its optimizer off."""
    import onnxruntime as ort

    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feeds), strict=True))
