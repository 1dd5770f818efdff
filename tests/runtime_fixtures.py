"""A bundle with two small hand-written graphs, so that the run-time is tested without the exporter.

Vision keeps the K brightest of 16 patches of an 8 x 8 picture. The decoder has two layers, 259 tokens (the bytes,
``<s>``, ``</s>``, ``<image>``) and random weights: its text is a fixed, meaningless string of bytes that depends on the
picture, the prompt, the positions and the cache.
"""

from __future__ import annotations

import dataclasses
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.bundle.manifest import (
    Cache,
    Graph,
    Manifest,
    ModelSource,
    Precision,
    Prompt,
    ScheduledSite,
    Tensor,
)
from lmmprune.compiler.bundle.write_bundle import write_bundle

BOS, EOS, IMAGE, VOCAB = 256, 257, 258, 259
PATCHES, GRID, SIZE, HIDDEN, HEADS, HEAD_DIM = 16, 4, 8, 8, 2, 4
PREPROCESSOR = (
    '{"resize": {"shortest_edge": 8}, "resample": "bicubic", "crop": [8, 8], "rescale": 0.00392156862745098, '
    '"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}'
)

VISION = """
<ir_version: 10, opset_import: ["" : 20]>
vision (FLOAT[1,3,8,8] pixel_values) => (FLOAT[1,K,8] image_features OUTPUTS)
<int64[6] split = {1,3,4,2,4,2}, int64[3] rows = {1,16,12}, int64[1] last = {2}, int64[1] k = {K}>
{
  grid = Reshape (pixel_values, split)
  order = Transpose <perm = [0, 2, 4, 1, 3, 5]> (grid)
  patches = Reshape (order, rows)
  all_features = MatMul (patches, weight)
SELECT
}
"""
SELECT = """
  score = ReduceSum <keepdims = 0> (patches, last)
  top, picked = TopK (score, k)
  down, ascending = TopK <largest = 0> (picked, k)
  kept_indices = Identity (down)
  flat = Squeeze (kept_indices)
  image_features = Gather <axis = 1> (all_features, flat)
"""
DECODER = """
<ir_version: 10, opset_import: ["" : 20]>
decoder (int64[1,seq] input_ids, FLOAT[1,K,8] image_features, int64[1,seq] position_ids,
         FLOAT[1,2,past,4] past_key_0, FLOAT[1,2,past,4] past_value_0,
         FLOAT[1,2,past,4] past_key_1, FLOAT[1,2,past,4] past_value_1)
     => (FLOAT[1,1,259] logits, FLOAT[1,2,total,4] present_key_0, FLOAT[1,2,total,4] present_value_0,
         FLOAT[1,2,total,4] present_key_1, FLOAT[1,2,total,4] present_value_1)
<int64 image_id = {258}, int64 one = {1}, int64 zero = {0}, int64 most = {KMAX}, int64 axis1 = {1}, int64[1] row0 = {0},
 int64[1] last_axis = {-1}, int64[1] end = {-1}, int64[1] far = {9223372036854775807}, int64[1] time = {1},
 int64[1] lengths = {2}, int64[4] heads = {1,-1,2,4}, int64[3] merged = {1,1,8}>
{
  words = Gather (table, input_ids)
  is_image = Equal (input_ids, image_id)
  counted = Cast <to = 7> (is_image)
  running = CumSum (counted, axis1)
  index = Sub (running, one)
  clipped = Clip (index, zero, most)
  flat = Squeeze (clipped, row0)
  pictures = Gather <axis = 1> (image_features, flat)
  mask = Unsqueeze (is_image, last_axis)
  x = Where (mask, pictures, words)
  turn = Cast <to = TYPE> (position_ids)
  wave = Cos (turn)
  waves = Unsqueeze (wave, last_axis)
  turned = Mul (x, waves)
  split = Reshape (turned, heads)
  key = Transpose <perm = [0, 2, 1, 3]> (split)
  deeper = MatMul (turned, mix)
  split1 = Reshape (deeper, heads)
  value = Transpose <perm = [0, 2, 1, 3]> (split1)
  present_key_0 = Concat <axis = 2> (past_key_0, key)
  present_value_0 = Concat <axis = 2> (past_value_0, value)
  present_key_1 = Concat <axis = 2> (past_key_1, value)
  present_value_1 = Concat <axis = 2> (past_value_1, key)
  seen0 = Mul (present_key_0, present_value_0)
  seen1 = Mul (present_key_1, present_value_1)
  seen = Add (seen0, seen1)
  total_seen = ReduceSum <keepdims = 0> (seen, lengths)
  history = Sin (total_seen)
  history1 = Reshape (history, merged)
  last = Slice (turned, end, far, time)
  state = Add (last, history1)
  logits = MatMul (state, head)
}
"""


def make_bundle(destination: Path, *, keep: int = PATCHES, dtype: str = "float32", **changes: Any) -> Bundle:
    """Write the bundle and open it; ``changes`` replace fields of the manifest."""
    with write_bundle(destination, force=True) as writer:
        vision = _vision(keep, dtype, with_indices=keep < PATCHES)
        decoder = _decoder(keep, dtype)
        onnx.save(vision, writer.path / "vision.onnx")
        onnx.save(
            decoder, writer.path / "decoder.onnx", save_as_external_data=True, location="decoder.data", size_threshold=0
        )
        tokenizer().save(str(writer.path / "tokenizer.json"))
        (writer.path / "preprocessor.json").write_text(PREPROCESSOR)
        manifest = _manifest(vision, decoder, keep, dtype)
        writer.finish(dataclasses.replace(manifest, **changes))
    return Bundle.open(destination)


def tokenizer() -> Tokenizer:
    """Return a tokenizer whose tokens are the bytes, so that characters come in pieces."""
    # The byte-level alphabet in byte order: printable bytes stand for themselves, the others follow from U+0100 on.
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    vocab = {chr(byte if byte in printable else next(others)): byte for byte in range(256)}
    result = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    result.decoder = decoders.ByteLevel()
    result.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in ("<s>", "</s>", "<image>")])
    result.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return result


def picture(*bright: int, size: int = SIZE) -> Image.Image:
    """Return a dark picture in which the patches with these indices are bright."""
    pixels = np.full((GRID, GRID, 3), 20, np.uint8)
    for index in bright:
        pixels[divmod(index, GRID)] = (250 - 6 * index, 160 + 6 * index, 220)  # bright, each in a colour of its own
    return Image.fromarray(pixels).resize((size, size), Image.Resampling.NEAREST)


def save_picture(path: Path, *bright: int, size: int = SIZE) -> Path:
    """Save ``picture`` and return its path."""
    picture(*bright, size=size).save(path)
    return path


def png_header(width: int, height: int) -> bytes:
    """Return a PNG file that claims a size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def _vision(keep: int, dtype: str, *, with_indices: bool) -> onnx.ModelProto:
    text = VISION.replace("SELECT", SELECT if with_indices else "  image_features = Identity (all_features)")
    text = text.replace("OUTPUTS", ", int64[1,K] kept_indices" if with_indices else "")
    return _parse(text, keep, dtype, {"weight": (12, HIDDEN)})


def _decoder(keep: int, dtype: str) -> onnx.ModelProto:
    text = DECODER.replace("{KMAX}", f"{{{keep - 1}}}").replace("TYPE", "1" if dtype == "float32" else "10")
    return _parse(text, keep, dtype, {"table": (VOCAB, HIDDEN), "mix": (HIDDEN, HIDDEN), "head": (HIDDEN, VOCAB)})


def _parse(text: str, keep: int, dtype: str, weights: dict[str, tuple[int, int]]) -> onnx.ModelProto:
    text = text.replace("[1,K", f"[1,{keep}").replace("{K}", f"{{{keep}}}")
    model = onnx.parser.parse_model(text.replace("FLOAT", "float" if dtype == "float32" else "float16"))
    rng = np.random.default_rng(5)
    for name, shape in weights.items():
        array = rng.standard_normal(shape)
        if name == "head":
            array /= np.linalg.norm(array, axis=0)  # no token is likelier than another
        array = array.astype(dtype)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.checker.check_model(model)
    return model


def _signature(model: onnx.ModelProto, file: str) -> Graph:
    def tensors(values: Any) -> tuple[Tensor, ...]:
        return tuple(
            Tensor(
                name=value.name,
                dtype=str(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)),
                shape=tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
            )
            for value in values
        )

    return Graph(file=file, inputs=tensors(model.graph.input), outputs=tensors(model.graph.output))


def _manifest(vision: onnx.ModelProto, decoder: onnx.ModelProto, keep: int, dtype: str) -> Manifest:
    pruned = keep < PATCHES
    return Manifest(
        model="synthetic",
        family="llava",
        source=ModelSource(kind="directory", name="runtime_fixtures"),
        weights="dummy",
        method="brightest" if pruned else None,
        parameters={},
        schedule=(ScheduledSite(site="vision_output", tokens_in=PATCHES, tokens_out=keep, kept="kept_indices"),)
        if pruned
        else (),
        kept="kept_indices" if pruned else None,
        positions="contiguous",
        llm_positions="contiguous",
        precision=Precision(dtype=dtype),
        target="ort-cpu",
        opset=20,
        image_tokens=keep,
        requested_tokens=keep,
        average_tokens=float(keep),
        prefix=1 + len("USER: "),  # <s>, then bytes
        grid=(GRID, GRID),
        vision=_signature(vision, "vision.onnx"),
        decoder=_signature(decoder, "decoder.onnx"),
        cache=Cache(
            past=tuple((f"past_key_{layer}", f"past_value_{layer}") for layer in range(2)),
            present=tuple((f"present_key_{layer}", f"present_value_{layer}") for layer in range(2)),
            kv_heads=HEADS,
            head_dim=HEAD_DIM,
            length_offsets=(0, 0),
        ),
        prompt=Prompt(
            template="USER: <image>\n{prompt} ASSISTANT:",
            image_token="<image>",
            image_token_id=IMAGE,
            eos_token_ids=(EOS,),
        ),
        max_positions=128,
        flops={},
        tools={},
        created="2026-01-01T00:00:00Z",
    )
