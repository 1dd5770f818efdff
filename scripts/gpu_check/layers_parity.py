"""Hold a back end's features and logits at LLaVA-7B's width against ONNX Runtime on the CPU: same graphs, same values.

The prompt is short, so that the CPU takes seconds. Both sides go on with their own cache, so that the decode step also
shows whether the prefill wrote it rightly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lmmprune.compiler.backends.session import Session
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.bundle.manifest import Manifest
from lmmprune.compiler.runtime.kv_cache import KvCache
from lmmprune.compiler.verify.parity import relative_and_cosine
from lmmprune.compiler.verify.replay import load_on_cpu, run_graph

PROMPT, PICTURE = 64, 40
"""Tokens of the prompt, and how many of them are the picture's."""

Array = np.ndarray[Any, Any]
Compute = Callable[[Mapping[str, Array]], Mapping[str, Any]]


def vision_parity(bundle: Bundle, session: Session) -> dict[str, float]:
    """Compare the features of random pixel values, token by token."""
    tensor = bundle.manifest.vision.inputs[0]
    feeds = {tensor.name: _random(tensor.shape, tensor.dtype)}
    expected = run_graph(load_on_cpu(bundle.vision, bundle.manifest.target, bundle.manifest.precision.dtype), feeds)[
        "image_features"
    ]
    found = session.download(session.run(_uploaded(session, feeds))["image_features"])
    return _compared(found[0], expected[0])


def decoder_parity(bundle: Bundle, session: Session) -> dict[str, float]:
    """Compare the logits of a prefill and of one decode step behind it."""
    manifest = bundle.manifest
    on_cpu = load_on_cpu(bundle.decoder, manifest.target, manifest.precision.dtype)
    found = _logits(manifest, session.upload, lambda feeds: session.run(_uploaded(session, feeds)), session.download)
    expected = _logits(manifest, lambda array: array, lambda feeds: run_graph(on_cpu, feeds), lambda array: array)
    return _compared(found, expected)


def _logits(
    manifest: Manifest, upload: Callable[[Array], Any], compute: Compute, download: Callable[[Any], Array]
) -> Array:
    """Return ``[2,V]``."""
    features = {tensor.name: tensor for tensor in manifest.decoder.inputs}["image_features"]
    vocabulary = manifest.decoder.outputs[0].shape[-1]
    ids = np.random.default_rng(1).integers(3, vocabulary, (1, PROMPT + 1))  # type: ignore[arg-type]  # static
    ids[0, 5 : 5 + min(PICTURE, manifest.image_tokens)] = manifest.prompt.image_token_id
    cache: KvCache[Any] = KvCache(manifest, upload, download)
    logits = []
    for start, stop in ((0, PROMPT), (PROMPT, PROMPT + 1)):
        feeds = {
            "input_ids": ids[:, start:stop],
            "position_ids": np.arange(start, stop, dtype=np.int64)[None],
            "image_features": _random(features.shape, features.dtype),
        }
        outputs = compute({**feeds, **cache.feeds(feeds["input_ids"].shape[1])})
        cache.take(outputs, tokens=stop - start)
        # A copy: the next run may write to the same memory.
        logits.append(np.array(download(outputs["logits"])[0, -1]))
    return np.stack(logits)


def _uploaded(session: Session, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Return the feeds on the device; what the cache gives is there already."""
    return {name: session.upload(value) if isinstance(value, np.ndarray) else value for name, value in feeds.items()}


def _random(shape: Any, dtype: str) -> Array:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def _compared(found: Array, expected: Array) -> dict[str, float]:
    """Return the lowest cosine of a row, and the largest difference of a value, of the row's largest."""
    pairs = zip(found.astype(np.float32), expected.astype(np.float32), strict=True)
    rows = [relative_and_cosine(ours, theirs) for ours, theirs in pairs]
    return {"cosine": min(cosine for _, cosine in rows), "relative": max(relative for relative, _ in rows)}
