"""The deployment targets as data: what each runtime takes, so that the passes can lower a graph to exactly that.

Facts carry their source: *seen* was tried for this project (ONNX Runtime 1.31, TensorRT-RTX 1.7.1 on a machine without
a GPU), *doc* is in the vendor's documentation, *believed* was not checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lmmprune.compiler.targets import trtexec
from lmmprune.compiler.targets.target import Target
from lmmprune.errors import TargetError, suggestion

_CANONICAL = 23  # `Attention`, `RotaryEmbedding`, `RMSNormalization` enter ONNX at opset 23, `TensorScatter` at 24
# Gelu enters ONNX at opset 20, but the tables of TensorRT's parser that could be had (up to 8.4) don't list it.
_LLM = frozenset({"Attention", "RotaryEmbedding", "RMSNormalization", "Gelu"})
_HALF = ("float16", "bfloat16", "float32")
_INT4 = (128, 64)  # doc: Quantization Schemes, "The supported block sizes are {64, 128}"

_TABLE = (
    Target(
        name="ort-cpu",
        summary="ONNX Runtime on the CPU",
        title="ONNX Runtime",
        backend="onnxruntime",
        device="cpu",
        provider="CPUExecutionProvider",
        serving="onnxruntime",
        opset=_CANONICAL,
        max_opset=25,  # seen: graphs of opset 24 run; believed: onnxruntime 1.31 is built on ONNX 1.20+
        native_ops=_LLM | {"TensorScatter"},  # seen: kernels of opset 23 since 1.23, of 24 in 1.31
        causal="upper_left",  # doc: ONNX Attention-23, "upper left causal bias"; the cache is outside of the node
        int8="u8s8",  # seen: the x86 kernels want U8 activations (S8: 1.07 s where U8 takes 0.47 s)
        int4_groups=(128, 64, 32),
        int4_whole=False,  # seen: a last group that is shorter is filled up
        # seen: at level 0 each call expands the weight to float32 (one token, 4096 to 11008: 50 ms; at level 4: 1.6 ms)
        nbits_level=4,
        # seen: faster than Attention behind Concat, in prompts and steps (docs/results/llava7b_layers.md)
        group_query=True,
        dtype="float32",
        dtypes=("float32", "float16"),  # float16 runs through casts on x86: smaller, not faster
        extra="cpu",
        requires="any x86-64 or Arm CPU; AVX512-VNNI makes INT8 fast",
        aliases=("ort", "cpu"),
        equal_head_widths=False,  # seen in 1.31
    ),
    Target(
        name="ort-cuda",
        summary="ONNX Runtime on an NVIDIA GPU",
        title="ONNX Runtime",
        backend="onnxruntime",
        device="cuda",
        provider="CUDAExecutionProvider",
        serving="onnxruntime",
        opset=_CANONICAL,
        max_opset=25,
        native_ops=_LLM | {"TensorScatter"},  # believed: what has no CUDA kernel falls back to the CPU's
        causal="upper_left",
        int8="s8s8",  # doc: the CUDA and TensorRT providers take symmetric Q/DQ
        int4_groups=(128, 64, 32),
        int4_whole=False,
        nbits_level=0,  # believed: the CUDA kernels multiply in the type of the activations, whatever the level
        dtype="float16",
        dtypes=("float16", "float32"),  # seen: onnxruntime's values of bfloat16 don't become arrays
        extra="gpu",
        requires="an NVIDIA GPU with CUDA 13 (onnxruntime-gpu 1.31)",  # seen in the wheel
        aliases=("cuda",),
    ),
    Target(
        name="openvino-cpu",
        summary="OpenVINO on the CPU",
        title="OpenVINO",
        backend="openvino",
        device="cpu",
        opset=_CANONICAL,
        max_opset=_CANONICAL,  # seen in 2026.4.1: Attention and RotaryEmbedding of opset 23 are read; 24 wasn't tried
        native_ops=_LLM,
        causal="upper_left",  # as ONNX says
        int8="u8s8",  # seen: the graphs of ort-cpu are as fast as its own
        int4_groups=(128, 64, 32),
        int4_whole=False,
        nbits_level=0,
        dtype="float32",
        dtypes=("float32", "bfloat16", "float16"),
        extra="openvino",
        requires="any x86-64 or Arm CPU; AMX makes bfloat16 and INT8 fast",
        aliases=("openvino", "ov"),
        equal_head_widths=False,
    ),
    Target(
        name="tensorrt-10.3",
        summary="TensorRT 10.3 (JetPack 6.2: CUDA 12.6, Python 3.10)",
        title="TensorRT",
        backend="tensorrt",
        device="cuda",
        serving="tensorrt",
        trtexec=trtexec.TENSORRT_10,
        timing_cache=True,
        lean_runtime=True,
        opset=20,
        # believed: onnx-tensorrt 10.3 carries ONNX 1.16, which has opset 21; 10.6 moves to 1.17 (doc: its changelog).
        # INT4 is read since 10.0 (doc: same), and no opset before 21 can say it.
        max_opset=21,
        native_ops=frozenset(),  # doc: Attention from 10.14, the others from 10.15
        causal="mask",
        int8="s8s8",  # doc: operators.md, "x_zero_point must be zero"
        int4_groups=_INT4,
        dtype="float16",
        dtypes=("float16", "float32"),  # doc: ONNX has no bfloat16 Conv, Cos or Sin before opset 22
        extra="gpu",
        requires="TensorRT 10.3 and the GPU that the engine is for",
        boards={"jetson-orin-jp6": "sm87"},
        version=("10.3", "10.13"),
        parser=(10, 3),
    ),
    Target(
        name="tensorrt-10.13",
        summary="TensorRT 10.13 (JetPack 7.1: CUDA 13.0, Python 3.12)",
        title="TensorRT",
        backend="tensorrt",
        device="cuda",
        serving="tensorrt",
        trtexec=trtexec.TENSORRT_10,
        timing_cache=True,
        lean_runtime=True,
        opset=22,
        max_opset=22,  # doc: onnx-tensorrt carries ONNX 1.17 since 10.6
        native_ops=frozenset(),
        causal="mask",
        int8="s8s8",
        int4_groups=_INT4,
        dtype="float16",
        dtypes=_HALF,
        extra="gpu",
        requires="TensorRT 10.13 and the GPU that the engine is for",
        boards={"jetson-thor-jp7.1": "sm110"},
        version=("10.13", "10.16"),
        parser=(10, 13),
    ),
    Target(
        name="tensorrt-10.16",
        summary="TensorRT 10.16 (JetPack 7.2: CUDA 13.2, Python 3.12)",
        title="TensorRT",
        backend="tensorrt",
        device="cuda",
        serving="tensorrt",
        trtexec=trtexec.TENSORRT_10_14,
        timing_cache=True,
        lean_runtime=True,
        opset=_CANONICAL,
        max_opset=24,  # doc: operators.md of 10.15, "opset 9 to opset 24"
        # doc: onnx-tensorrt changelog, 10.14 and 10.15; Gelu: seen in RTX 1.7.1, believed here
        native_ops=_LLM | {"TensorScatter"},
        # doc: 10.16 adds a lower-right alignment to the API; seen in RTX 1.7.1: the parser sets the upper left
        causal="upper_left",
        int8="s8s8",
        int4_groups=_INT4,
        dtype="float16",
        dtypes=_HALF,
        extra="gpu",
        requires="TensorRT 10.16 and the GPU that the engine is for",
        # JetPack 7 without a minor version is the last one.
        boards={
            "jetson-orin-jp7.2": "sm87",
            "jetson-thor-jp7.2": "sm110",
            "jetson-orin-jp7": "sm87",
            "jetson-thor-jp7": "sm110",
        },
        version=("10.16", "11.0"),
        parser=(10, 16),
    ),
    Target(
        name="tensorrt-11",
        summary="TensorRT 11 (strongly typed only)",
        title="TensorRT",
        backend="tensorrt",
        device="cuda",
        serving="tensorrt",
        trtexec=trtexec.TENSORRT_11,
        timing_cache=True,
        lean_runtime=True,
        opset=_CANONICAL,
        max_opset=25,  # doc: the ONNX opset guide of TensorRT 11.x
        native_ops=_LLM | {"TensorScatter"},
        causal="upper_left",
        int8="s8s8",
        int4_groups=_INT4,
        dtype="float16",
        dtypes=_HALF,
        extra="gpu",
        requires="TensorRT 11 and the GPU that the engine is for",
        aliases=("tensorrt", "trt"),
        version=("11.0", "12.0"),
        parser=(11, 0),
    ),
    Target(
        name="tensorrt-rtx",
        summary="TensorRT for RTX (engines are built without a GPU)",
        title="TensorRT-RTX",
        backend="tensorrt_rtx",
        device="cuda",
        trtexec=trtexec.RTX,
        # Seen in 1.7.1: a profile whose sequence length is fixed is compiled with its own copy of all the weights
        # (25 MB where a range 1..2 gives 16 MB and one profile 13 MB).
        decode_step=(1, 1, 2),
        # doc: "CPU-Only AOT and TensorRT-RTX Engines"; seen in 1.7.1: REFIT and STRIP_PLAN fail with a CUDA error.
        weightless_needs_gpu=True,
        builder_measured=True,
        # No timing cache (doc: "Timing Cache Migration"), no lean runtime in its wheel (seen in 1.7.1).
        opset=_CANONICAL,
        max_opset=25,  # seen
        native_ops=_LLM | {"TensorScatter"},  # seen in float32 and float16; Attention with one output, no past inputs
        causal="upper_left",  # seen: is_causal becomes CausalMaskKind.UPPER_LEFT, whatever the lengths
        int8="s8s8",
        int4_groups=(*_INT4, 32),  # seen: engines with groups of 32, 64 and 128 hold the weights in four bits
        dtype="float16",
        dtypes=_HALF,
        extra="rtx",
        requires="an NVIDIA RTX GPU (Turing or newer) with a CUDA 13 driver",
        architectures=("sm75", "sm80", "sm86", "sm89", "sm120", "sm121"),  # seen: ComputeCapability of 1.7.1
        aliases=("rtx", "trt-rtx"),
        version=("1.2", "2.0"),
        parser=(11, 0),  # believed: it reads opset 25, as the parser of 11 does
    ),
)

TARGETS: Mapping[str, Target] = {target.name: target for target in _TABLE}


def names() -> Iterator[str]:
    """Yield every name and alias that ``resolve`` takes."""
    for target in _TABLE:
        yield from target.names


def resolve(name: str) -> Target:
    """Return the target of a name or an alias.

    Raises:
        TargetError: No target has that name.
    """
    for target in _TABLE:
        if name in target.names:
            return target
    raise TargetError(f"no target '{name}'{suggestion(name, names())} (see 'lmmprune targets')")
