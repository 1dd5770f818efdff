"""One trace for all checkpoints of one architecture: which files the weights lie in makes no difference to a graph."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from typing import Any
from unittest import mock

from lmmprune.models import trace_cache
from lmmprune.models.private_names import ties
from lmmprune.models.source import Source

# Keys of a configuration that say nothing of its graph.
_ELSEWHERE = ("_name_or_path", "architectures", "transformers_version", "use_cache", "initializer_range")
_ELSEWHERE_ABOVE = ("ignore_index", "image_seq_length", "vocab_size")
_OF_THE_TOWER = ("video_frames", "pictures_together")
# And nothing of the tower's, beside the width that its features get.
_OF_THE_DECODER = ("image_token_id", "image_token_index", "pad_token_id", "tie_word_embeddings", "text_config")


@contextlib.contextmanager
def one_trace() -> Iterator[None]:
    """Let equal architectures share their traces, in all processes of the tests, before any weight is bound to them."""
    with mock.patch.object(trace_cache, "key_of", _key_of):
        yield


def _key_of(source: Source, model: Any, **options: Any) -> str:
    """Return a digest of what one part depends on: ``image_token_id`` is an argument of the decoder's trace alone."""
    part = "decoder" if "image_token_id" in options else "vision"
    tied = sorted(ties(model).items()) if part == "decoder" else []
    config = _bare(source.config.to_dict())
    aside = (*_ELSEWHERE_ABOVE, *(_OF_THE_TOWER if part == "decoder" else _OF_THE_DECODER))
    config = {name: value for name, value in config.items() if name not in aside}
    if part == "decoder" and isinstance(config.get("vision_config"), dict):
        # The size of pictures is the tower's.
        config["vision_config"].pop("image_size", None)
    known = [part, source.family.name, model.get_input_embeddings().weight.shape[1], tied, options, config]
    return "one-" + hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()


def _bare(config: Any) -> Any:
    if not isinstance(config, dict):
        return config
    return {key: _bare(value) for key, value in config.items() if key not in _ELSEWHERE}
