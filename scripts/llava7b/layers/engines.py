"""A prefill and a decode step of one decoder, in ONNX Runtime and in transformers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click
import numpy as np
import onnxruntime as ort

from lmmprune.compiler.backends.onnxruntime import session_options
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.flops.formula import TEXT_TOKENS
from lmmprune.compiler.runtime.kv_cache import SPARE

MODEL = "llava-1.5-7b"
Run = Callable[[], object]

# quantize_dynamic holds the whole graph in memory: a process of its own gives that back.
_QUANTIZE = """
import sys
from onnxruntime.quantization import QuantType, quantize_dynamic
quantize_dynamic(sys.argv[1], sys.argv[2], op_types_to_quantize=["MatMul"], per_channel=True,
                 weight_type=QuantType.QInt8, use_external_data_format=True)
"""


def stock(bundle: Bundle) -> Path:
    """Quantize the float decoder with onnxruntime's own tool, beside the bundle, unless that was done."""
    path = bundle.path.with_name(f"{bundle.path.name}_ort_dynamic") / "decoder.onnx"
    if not path.is_file():
        click.echo("quantize_dynamic", err=True)
        path.parent.mkdir(exist_ok=True)
        subprocess.run([sys.executable, "-c", _QUANTIZE, str(bundle.decoder), str(path)], check=True)
    return path


def load(graph: Path, threads: int) -> Any:
    """Load a graph; all sessions share one arena, which at 2940 tokens is larger than the weights."""
    options = session_options(ort, threads)
    options.add_session_config_entry("session.use_env_allocators", "1")
    return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def bound(session: Any, feeds: dict[str, Any], in_place: Mapping[str, str] = MappingProxyType({})) -> Run:
    """Return a run of a session on fixed inputs, without copies; outputs ``in_place`` are written to their inputs."""
    values = {name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)) for name, array in feeds.items()}

    def once() -> None:
        binding = session.io_binding()
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for output in session.get_outputs():
            if output.name in in_place:
                binding.bind_ortvalue_output(output.name, values[in_place[output.name]])
            else:
                binding.bind_output(output.name, "cpu")
        session.run_with_iobinding(binding)

    return once


def decoder_runs(session: Any, bundle: Bundle, length: int) -> tuple[Run, Run]:
    """Return a prefill of so many tokens, and a decode step behind it; as ``bundle`` keeps its cache.

    The graph has as many features as one of the bundle's pictures has; further places of the sequence hold words, which
    cost the same: every layer sees the length alone.
    """
    manifest = bundle.manifest
    rng = np.random.default_rng(0)
    shapes = {tensor.name: tensor.shape for tensor in manifest.decoder.inputs}
    features = rng.standard_normal(shapes["image_features"]).astype(np.float32)  # type: ignore[arg-type]  # static
    ids = np.full((1, length), 7, np.int64)
    ids[0, 5 : 5 + min(manifest.image_tokens, length - TEXT_TOKENS)] = manifest.prompt.image_token_id

    def run(tokens: Any, start: int) -> Run:
        positions = np.arange(start, start + tokens.shape[1], dtype=np.int64)[None]
        rows = length + SPARE if manifest.cache.in_place else start
        feeds = {"input_ids": tokens, "position_ids": positions, "image_features": features}
        for name in (name for pair in manifest.cache.past for name in pair):
            feeds[name] = rng.standard_normal((1, manifest.cache.kv_heads, rows, manifest.cache.head_dim), np.float32)
        if manifest.cache.length is not None:
            feeds[manifest.cache.length] = np.array([start])
        return bound(session, feeds, manifest.cache.in_place)

    return run(ids, 0), run(ids[:, :1], length)


def transformers_model(layers: int, threads: int) -> Any:
    """Return the same layers in transformers: Llama with sdpa, float32, without the table of words."""
    import torch
    from transformers import LlamaForCausalLM

    from lmmprune.models.source import resolve

    torch.set_num_threads(threads)
    model: Any = LlamaForCausalLM(resolve(MODEL, weights="dummy", layers=layers).config.text_config)
    model.eval()
    model.model.embed_tokens = torch.nn.Embedding(1, 1)  # embeddings are handed in
    return model


def transformers_runs(model: Any, length: int) -> tuple[Run, Run]:
    """Return a prefill with the logits of the last position, and a decode step behind it."""
    import torch
    from transformers import DynamicCache

    config = model.config
    embeds = torch.randn(1, length, config.hidden_size)
    cache = DynamicCache()
    width = config.hidden_size // config.num_attention_heads
    for layer in range(config.num_hidden_layers):
        past = torch.randn(1, config.num_key_value_heads, length, width)
        cache.update(past, past, layer)

    def prefill() -> None:
        with torch.no_grad():
            model(inputs_embeds=embeds, use_cache=True, logits_to_keep=1)

    def decode() -> None:
        with torch.no_grad():
            model(inputs_embeds=embeds[:, :1], past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.crop(-1)

    return prefill, decode
