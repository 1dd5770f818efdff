"""One trace for all layouts of one architecture: which files the weights lie in makes no difference to a graph."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import onnx_ir as ir

from lmmprune.models import trace
from lmmprune.models.source import Source

# Keys of a configuration that say nothing of its graph.
_ELSEWHERE = ("_name_or_path", "architectures", "transformers_version", "use_cache", "initializer_range")
_ELSEWHERE_ABOVE = ("ignore_index", "image_seq_length", "vocab_size")
_done: dict[str, ir.Model] = {}


@contextlib.contextmanager
def one_trace() -> Iterator[None]:
    """Let equal architectures share their traces, before any weight is bound to them."""
    with (
        mock.patch.object(trace, "trace_vision", _once(trace.trace_vision)),
        mock.patch.object(trace, "trace_decoder", _once(trace.trace_decoder)),
    ):
        yield


def _once(traced: Callable[..., ir.Model]) -> Callable[..., ir.Model]:
    def call(model: Any, source: Source, **options: Any) -> ir.Model:
        tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        config = _bare(source.config.to_dict())
        config = {name: value for name, value in config.items() if name not in _ELSEWHERE_ABOVE}
        key = json.dumps([traced.__name__, source.family.name, tied, options, config], sort_keys=True, default=str)
        if key not in _done:
            _done[key] = traced(model, source, **options)
        return _done[key].clone()

    return call


def _bare(config: Any) -> Any:
    if not isinstance(config, dict):
        return config
    return {key: _bare(value) for key, value in config.items() if key not in _ELSEWHERE}
