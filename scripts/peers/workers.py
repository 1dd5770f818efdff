"""One runtime with one decoder, in a process that runs what it is told to: ``python workers.py KIND FILE THREADS``.

It reads lines ``prefill N`` and ``decode N`` (one token behind N others), and answers each with milliseconds. The first
line that it writes says what was loaded and how long that took.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lmmprune.compiler.backends.numpy_types import numpy_type
from lmmprune.compiler.backends.onnxruntime import OrtSession
from lmmprune.compiler.backends.openvino import open_component
from lmmprune.compiler.backends.session import Session
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.flops.formula import TEXT_TOKENS
from lmmprune.compiler.runtime.kv_cache import KvCache

Step = Callable[[str, int], float]


def of_bundle(session: Session, bundle: Bundle) -> Step:
    """Return the steps of a decoder as the run-time does them: values stay where the session made them."""
    manifest = bundle.manifest
    rng = np.random.default_rng(0)
    given = next(tensor for tensor in manifest.decoder.inputs if tensor.name == "image_features")
    rows: Any = given.shape
    features = session.upload(rng.standard_normal(rows).astype(numpy_type(given.dtype)))
    caches: dict[int, KvCache[Any]] = {}

    def feeds(ids: Any, start: int, cache: KvCache[Any]) -> dict[str, Any]:
        positions = np.arange(start, start + ids.shape[1], dtype=np.int64)[None]
        return {
            "input_ids": session.upload(ids),
            "position_ids": session.upload(positions),
            "image_features": features,
            **cache.feeds(ids.shape[1]),
        }

    def prefill(tokens: int) -> float:
        ids = np.full((1, tokens), 7, np.int64)
        # Fewer visual tokens read fewer rows of the features; every layer sees the length alone.
        ids[0, 5 : 5 + tokens - TEXT_TOKENS] = manifest.prompt.image_token_id
        cache = caches.get(tokens) or KvCache(manifest, session.upload, session.download)
        cache.clear()
        given = feeds(ids, 0, cache)
        start = time.perf_counter()
        outputs = session.run(given)
        session.download(outputs["logits"])
        spent = time.perf_counter() - start
        cache.take(outputs, tokens=tokens)
        caches[tokens] = cache
        return spent

    def step(what: str, tokens: int) -> float:
        if what == "prefill":
            return prefill(tokens)
        if tokens not in caches:
            prefill(tokens)
        cache = caches[tokens]
        given = feeds(np.full((1, 1), 7, np.int64), cache.tokens, cache)
        start = time.perf_counter()
        outputs = session.run(given)
        session.download(outputs["logits"])
        spent = time.perf_counter() - start
        cache.take(outputs, tokens=1)
        return spent

    return step


def onnxruntime(folder: Path, threads: int) -> Step:
    """Load a bundle's decoder in ONNX Runtime."""
    bundle = Bundle.open(folder)
    return of_bundle(OrtSession(bundle.decoder, threads=threads, in_place=bundle.manifest.cache.in_place), bundle)


def openvino(folder: Path, threads: int) -> Step:
    """Load a bundle's decoder in OpenVINO, as our target does."""
    bundle = Bundle.open(folder)
    return of_bundle(open_component(bundle, "decoder", threads=threads), bundle)


def openvino_stateful(file: Path, threads: int) -> Step:
    """Load OpenVINO's own form of a decoder, whose cache is the request's state, with all that it chooses by itself."""
    import openvino as ov

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": str(threads)}
    compiled = ov.compile_model(ov.Core().read_model(file), "CPU", settings)
    request = compiled.create_infer_request()
    shape = compiled.input("image_features").shape
    features = np.random.default_rng(0).standard_normal(tuple(shape)).astype(np.float32)

    def run(tokens: int, start: int) -> float:
        feeds = {
            "input_ids": np.full((1, tokens), 7, np.int64),
            "position_ids": np.arange(start, start + tokens, dtype=np.int64)[None],
            "image_features": features,
        }
        began = time.perf_counter()
        request.infer(feeds, share_inputs=True)
        return time.perf_counter() - began

    def step(what: str, tokens: int) -> float:
        request.reset_state()
        spent = run(tokens, 0)
        return spent if what == "prefill" else run(1, tokens)

    return step


def transformers(file: Path, threads: int, dtype: str = "float32") -> Step:
    """Load transformers' Llama with sdpa."""
    import torch
    from transformers import DynamicCache, LlamaForCausalLM

    from lmmprune.models.source import resolve

    torch.set_num_threads(threads)
    config = resolve("llava-1.5-7b", weights="dummy", layers=int(file.name)).config.text_config
    model: Any = LlamaForCausalLM(config).to(getattr(torch, dtype)).eval()
    words = torch.full((1, 4096), 7)
    caches: dict[int, Any] = {}

    @torch.no_grad()
    def step(what: str, tokens: int) -> float:
        if what == "prefill" or tokens not in caches:
            cache = DynamicCache()
            start = time.perf_counter()
            model(words[:, :tokens], past_key_values=cache, use_cache=True, logits_to_keep=1)
            spent, caches[tokens] = time.perf_counter() - start, cache
            if what == "prefill":
                return spent
        start = time.perf_counter()
        model(words[:, :1], past_key_values=caches[tokens], use_cache=True, logits_to_keep=1)
        spent = time.perf_counter() - start
        caches[tokens].crop(-1)
        return spent

    return step


def transformers_bf16(file: Path, threads: int) -> Step:
    """Load the same in bfloat16."""
    return transformers(file, threads, "bfloat16")


def llama_cpp(file: Path, threads: int) -> Step:
    """Start llama.cpp's server, which times its own steps."""
    from llama import Server

    return Server(file, threads).step


KINDS: dict[str, Callable[[Path, int], Step]] = {
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "openvino-stateful": openvino_stateful,
    "transformers": transformers,
    "transformers-bf16": transformers_bf16,
    "llama.cpp": llama_cpp,
}


def main(kind: str, file: str, threads: str) -> None:
    """Load, then do as told until nobody asks."""
    start = time.perf_counter()
    step = KINDS[kind](Path(file), int(threads))
    print(json.dumps({"loaded": time.perf_counter() - start}), flush=True)
    for line in sys.stdin:
        what, tokens = line.split()
        print(json.dumps(step(what, int(tokens)) * 1e3), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
