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
_OF_THE_TOWER = ("video_frames", "pictures_together")
# And nothing of the tower's, beside the width that its features get.
_OF_THE_DECODER = ("image_token_id", "image_token_index", "pad_token_id", "tie_word_embeddings", "text_config")
_done: dict[str, ir.Model] = {}


@contextlib.contextmanager
def one_trace() -> Iterator[None]:
    """Let equal architectures share their traces, before any weight is bound to them."""
    with (
        mock.patch.object(trace, "trace_vision", _once("vision", trace.trace_vision)),
        mock.patch.object(trace, "trace_decoder", _once("decoder", trace.trace_decoder)),
    ):
        yield


def _once(part: str, traced: Callable[..., ir.Model]) -> Callable[..., ir.Model]:
    def call(model: Any, source: Source, **options: Any) -> ir.Model:
        embeddings = model.get_input_embeddings().weight
        tied = part == "decoder" and embeddings is model.get_output_embeddings().weight
        config = _bare(source.config.to_dict())
        aside = (*_ELSEWHERE_ABOVE, *(_OF_THE_TOWER if part == "decoder" else _OF_THE_DECODER))
        config = {name: value for name, value in config.items() if name not in aside}
        if part == "decoder" and isinstance(config.get("vision_config"), dict):
            # The size of pictures is the tower's.
            config["vision_config"].pop("image_size", None)
        known = [part, source.family.name, embeddings.shape[1], tied, options, config]
        key = json.dumps(known, sort_keys=True, default=str)
        if key not in _done:
            _done[key] = traced(model, source, **options)
        return _done[key].clone()

    return call


def _bare(config: Any) -> Any:
    if not isinstance(config, dict):
        return config
    return {key: _bare(value) for key, value in config.items() if key not in _ELSEWHERE}
