"""The standard operators that TensorRT's ONNX parser reads: what a lowered graph may consist of.

Reference: onnx-tensorrt, docs/operators.md, the table of the 8.4 branch. Later branches add operators and take none
away, so what is listed here holds for TensorRT 10.3 (JetPack 6) and up.
"""

from __future__ import annotations

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

# TopK sorts at most this many candidates (TensorRT's documented limit of k).
MOST_SORTED = 3840

# What the parser reads for floating point only, though ONNX allows more: scores are cast before them.
FLOAT_ONLY = frozenset(
    {"TopK", "ArgMax", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceL2", "Softmax", "MatMul", "CumSum"}
)

# Inputs that must be constants: operator -> indices.
CONSTANT_INPUTS = {"TopK": (1,), "Squeeze": (1,), "Unsqueeze": (1,), "CumSum": (1,)}
