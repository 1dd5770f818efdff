"""The standard operators that TensorRT's ONNX parser reads: what a lowered graph may consist of, version by version.

References: onnx-tensorrt, docs/operators.md, the table of the 8.4 branch (doc); its docs/Changelog.md for what later
versions added (doc up to 10.6), the release notes of 10.14 and 10.15 (doc). No release took an operator away.
"""

from __future__ import annotations

from collections.abc import Mapping

Version = tuple[int, int]

TENSORRT = frozenset(
    {
        *("Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh"),
        *("AveragePool", "BatchNormalization", "Cast", "Ceil", "Celu", "Clip", "Concat", "Constant"),
        *("ConstantOfShape", "Conv", "ConvTranspose", "Cos", "Cosh", "CumSum", "DepthToSpace", "DequantizeLinear"),
        *("Div", "Dropout", "Einsum", "Elu", "Equal", "Erf", "Exp", "Expand", "EyeLike", "Flatten", "Floor"),
        *("Gather", "GatherElements", "GatherND", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "Greater"),
        *("GreaterOrEqual", "HardSigmoid", "Identity", "InstanceNormalization", "IsNaN", "LeakyRelu", "Less"),
        *("LessOrEqual", "Log", "LogSoftmax", "MatMul", "Max", "MaxPool", "Mean", "Min", "Mul", "Neg", "Not", "Or"),
        *("Pad", "Pow", "PRelu", "QuantizeLinear", "Range", "ReduceL1", "ReduceL2", "ReduceLogSum"),
        *("ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"),
        *("Relu", "Reshape", "Resize", "Round", "Selu", "Shape", "Sigmoid", "Sign", "Sin", "Sinh", "Size", "Slice"),
        *("Softmax", "Softplus", "Softsign", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tan", "Tanh"),
        *("Tile", "TopK", "Transpose", "Unsqueeze", "Where", "Xor"),
    }
)

# Version -> what it added, of what a graph of ours might hold.
ADDED: Mapping[Version, frozenset[str]] = {
    (8, 5): frozenset({"Mod", "Trilu"}),  # doc: changelog, 8.5 GA
    (8, 6): frozenset({"GroupNormalization", "IsInf", "LayerNormalization"}),  # doc: changelog, 8.6 EA
    (10, 14): frozenset({"Attention"}),  # doc: release notes of 10.14
    (10, 15): frozenset({"RMSNormalization", "RotaryEmbedding", "TensorScatter"}),  # doc: release notes of 10.15
    (10, 16): frozenset({"Gelu"}),  # seen in RTX 1.7.1; believed for TensorRT, when it came isn't known here
}

# TopK sorts at most this many candidates (TensorRT's documented limit of k).
MOST_SORTED = 3840

# nvinfer1::Dims::MAX_DIMS (doc: NvInferRuntimeBase.h).
MOST_DIMENSIONS = 8

# What the parser reads for floating point only, though ONNX allows more: scores are cast before them.
FLOAT_ONLY = frozenset(
    {"TopK", "ArgMax", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceL2", "Softmax", "MatMul", "CumSum"}
)

# Inputs that must be constants: operator -> indices.
CONSTANT_INPUTS = {"TopK": (1,), "Squeeze": (1,), "Unsqueeze": (1,), "CumSum": (1,)}

# ... and the version from which they need not be (doc: changelog, 8.6 and 10.3).
CONSTANT_INPUTS_UNTIL: Mapping[str, tuple[Version, tuple[int, ...]]] = {"Slice": ((10, 3), (3,))}


def operators(version: Version) -> frozenset[str]:
    """Return what the parser of a version reads."""
    return TENSORRT.union(*(added for since, added in ADDED.items() if since <= version))
