"""What Prometheus reads at ``/metrics``: requests, queues, times and tokens."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from lmmprune.compiler.runtime.answer import Stats
from lmmprune.compiler.serve.served import Served

_TTFT = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class Metrics:
    """The counters of one server."""

    def __init__(self, served: Mapping[str, Served]) -> None:
        """Begin at 0.

        Args:
            served: The bundles, whose queues are looked at when somebody asks.
        """
        self._registry = CollectorRegistry()
        by, r = ("model",), self._registry
        self._requests = Counter(
            "lmmprune_requests", "Requests by path and HTTP status.", ("path", "status"), registry=r
        )
        self._errors = Counter("lmmprune_errors", "Requests that failed, by type.", ("type",), registry=r)
        self._queue = Histogram("lmmprune_queue_seconds", "Time in the queue.", by, buckets=_TTFT, registry=r)
        self._ttft = Histogram(
            "lmmprune_ttft_seconds", "Vision and prefill, to the first token.", by, buckets=_TTFT, registry=r
        )
        self._token = Histogram(
            "lmmprune_token_seconds", "Mean time of an answer's later tokens.", by, buckets=_TOKEN, registry=r
        )
        self._kept = Counter("lmmprune_image_tokens", "Image tokens that entered the decoder.", by, registry=r)
        self._before = Counter("lmmprune_original_image_tokens", "Image tokens before pruning.", by, registry=r)
        self._prompt = Counter("lmmprune_prompt_tokens", "Tokens of prompts, with image tokens.", by, registry=r)
        self._new = Counter("lmmprune_new_tokens", "Generated tokens.", by, registry=r)
        waiting = Gauge("lmmprune_waiting", "Requests that wait.", by, registry=r)
        running = Gauge("lmmprune_running", "Requests that are answered.", by, registry=r)
        counted = (self._queue, self._ttft, self._token, self._kept, self._before, self._prompt, self._new)
        for name, one in served.items():
            for metric in counted:
                metric.labels(name)  # 0 is said, too
            waiting.labels(name).set_function(functools.partial(getattr, one.desk, "waiting"))
            running.labels(name).set_function(functools.partial(getattr, one.desk, "running"))

    def request(self, path: str, status: int) -> None:
        """Count a request that has ended."""
        self._requests.labels(path, str(status)).inc()

    def error(self, kind: str) -> None:
        """Count a request that was refused or failed."""
        self._errors.labels(kind).inc()

    def answer(self, model: str, stats: Stats, queued_ms: float) -> None:
        """Count an answer that has ended."""
        self._queue.labels(model).observe(queued_ms / 1e3)
        if stats.new_tokens:
            self._ttft.labels(model).observe(stats.ttft_ms / 1e3)
        if stats.ms_per_token is not None:
            self._token.labels(model).observe(stats.ms_per_token / 1e3)
        self._kept.labels(model).inc(stats.image_tokens)
        self._before.labels(model).inc(stats.tokens_before)
        self._prompt.labels(model).inc(stats.prompt_tokens)
        self._new.labels(model).inc(stats.new_tokens)

    def text(self) -> bytes:
        """Return all of it in Prometheus' text format."""
        return generate_latest(self._registry)
