"""The bodies of answers, whole or as pieces of a stream, as OpenAI's chat API writes them."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

from lmmprune.compiler.runtime.answer import Stats

_REASONS = {"stop": "stop", "stop_string": "stop", "length": "length", "positions": "length", "closed": "stop"}

END = b"data: [DONE]\n\n"
"""The last event of a stream."""


class Reply:
    """What all bodies of one answer have in common."""

    def __init__(self, model: str) -> None:
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self._model, self._created = model, int(time.time())

    def whole(self, text: str, stats: Stats, queued_ms: float) -> dict[str, Any]:
        """Return the answer as one body."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": _REASONS[stats.finish_reason],
        }
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": usage(stats),
            "lmmprune": timings(stats, queued_ms),
        }

    def piece(self, text: str, *, first: bool) -> dict[str, Any]:
        """Return a chunk with new text; the first one says who speaks."""
        return self._chunk({**({"role": "assistant"} if first else {}), "content": text}, None)

    def last(self, stats: Stats, queued_ms: float, *, first: bool) -> dict[str, Any]:
        """Return the chunk that says why the answer ended."""
        delta = {"role": "assistant", "content": ""} if first else {}
        return {**self._chunk(delta, _REASONS[stats.finish_reason]), "lmmprune": timings(stats, queued_ms)}

    def used(self, stats: Stats) -> dict[str, Any]:
        """Return the chunk that says what the answer took."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage(stats)}

    def _chunk(self, delta: dict[str, str], reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self._created, "model": self._model}


def usage(stats: Stats) -> dict[str, Any]:
    """Return the counts of an answer; the prompt's are those that entered the decoder, with the kept image tokens."""
    details = {
        "cached_tokens": stats.reused_tokens,
        "image_tokens": stats.image_tokens,
        "original_image_tokens": stats.tokens_before,
        **({"image_sizes": list(stats.sizes)} if stats.sizes else {}),
        **({"image_tiles": list(stats.tiles)} if stats.tiles else {}),
    }
    return {
        "prompt_tokens": stats.prompt_tokens,
        "completion_tokens": stats.new_tokens,
        "total_tokens": stats.prompt_tokens + stats.new_tokens,
        "prompt_tokens_details": details,
    }


def timings(stats: Stats, queued_ms: float) -> dict[str, Any]:
    """Return the times of an answer in ms, which OpenAI's API doesn't have."""
    return {
        "queued_ms": queued_ms,
        "preprocess_ms": stats.preprocess_ms,
        "vision_ms": stats.vision_ms,
        "prefill_ms": stats.prefill_ms,
        "decode_ms": stats.decode_ms,
        "ttft_ms": stats.ttft_ms,
        "ms_per_token": stats.ms_per_token,
    }


def event(body: dict[str, Any]) -> bytes:
    """Return a body as an event of a stream."""
    return b"data: " + json.dumps(body, ensure_ascii=False, allow_nan=False).encode() + b"\n\n"
