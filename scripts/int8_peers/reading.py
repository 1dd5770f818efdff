"""What was read out of the committed numbers, in words."""

from __future__ import annotations

# Written after reading the committed numbers.
READING = (
    "## What this says",
    "",
    "* onnxruntime's and neural-compressor's static QDQ also put a pair behind every product (QLinearMatMul): "
    "about twice the error of ours without SmoothQuant in the decoder, and a slower decode step; their residual "
    "sums read quantized values, which our lint names.",
    "* onnxruntime's `quantize_dynamic`, told to take MatMul only, is as good as our dynamic scheme: the same "
    "error, the same latency, and sooner done. Left alone it takes the ONNX operator Attention for the one of "
    "com.microsoft and writes a graph that onnxruntime itself refuses; its shape inference before the "
    "quantization stops at Attention too. We keep ours for blocks that stay in float and for weights that are "
    "written one at a time.",
    "* ModelOpt's graphs are made for TensorRT: S8 pairs, and float weights left in the file for the builder to "
    "fold (hence 'stored', and the size). Its errors are close to ours without SmoothQuant; on a CPU its decoder "
    "is slower than float32, and onnxruntime 1.31 loads its vision graph only with the optimizer off. It also "
    "quantizes the products of scores where tokens are pruned. TensorRT itself was not run here.",
    "* neural-compressor 3.10 has no ONNX part any more; 2.6 wants NumPy 1, onnx 1.18 and setuptools below 80. It "
    "makes working graphs with the least memory, and also quantizes gathers, reshapes and transposes.",
    "* Ours is not best at everything. SmoothQuant takes longer and wins next to nothing in this model: the error "
    "in the encoder is a little smaller, in the decoder no smaller. Dynamic beats static in error and is not "
    "slower, but then onnxruntime's own is as good. neural-compressor needs less memory, and ModelOpt and "
    "onnxruntime less time.",
    "* Of 500 questions a share of 97 % has a 95 % interval of about 1.5 points to each side: no row is outside "
    "for sure; the lowest is onnxruntime's default, which quantizes nearly every operator.",
    "* Models above 2 GB: at LLaVA-7B's widths (two decoder layers, 3.9 GB, two samples; one run apart from "
    "these, on a busy machine) ours took 22 s and 5.1 GB at its peak (dynamic), 58 s and 5.4 GB (static, without "
    "SmoothQuant), pages of mapped files counted. The others have no row: ModelOpt and `quantize_dynamic` were "
    "stopped after 150 s at low priority, which says nothing of them; use --wide for a fair run. onnx, and so "
    "they, refuse external data with hard links.",
    "",
)
