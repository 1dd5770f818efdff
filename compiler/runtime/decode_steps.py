"""The runs of a decoder for one answer: the prompt, then token by token on the cache that the run before left."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmmprune.compiler.bundle.interface import Interface
from lmmprune.compiler.runtime.encoded import Encoded
from lmmprune.compiler.runtime.kv_cache import KvCache
from lmmprune.names import IMAGE_FEATURES, INPUT_IDS, POSITION_IDS

Array = NDArray[Any]
Feeds = Mapping[str, Array]
Outputs = Mapping[str, Array]

Steps = Generator[Feeds, Outputs, None]
"""Yields the inputs of a run and is sent the outputs, which the next run may need."""


def decode_steps(
    interface: Interface,
    prompt: Encoded,
    positions: NDArray[np.int64],
    features: Array,
    runs: int,
    choose: Callable[[Outputs], int | None],
) -> Steps:
    """Give the runs of a decoder in host memory.

    Args:
        interface: How it is run.
        prompt: The tokenized prompt.
        positions: Its position ids.
        features: ``image_features [1,K,C]``.
        runs: How many at most, the prefill included.
        choose: Says by a run's outputs which token comes next; None ends the answer.
    """
    ids = prompt.input_ids
    cache = KvCache[Array](interface, np.asarray, np.asarray, in_place=False)
    for _ in range(runs):
        outputs = yield {INPUT_IDS: ids, IMAGE_FEATURES: features, POSITION_IDS: positions, **cache.feeds(ids.shape[1])}
        token = choose(outputs)
        if token is None:
            return
        cache.take(outputs, tokens=ids.shape[1])
        ids, positions = np.array([[token]], np.int64), positions[..., -1:] + 1


def drive(steps: Steps, run: Callable[[Feeds], Outputs]) -> None:
    """Do all runs, to the end."""
    try:
        feeds = next(steps)
        while True:
            feeds = steps.send(run(feeds))
    except StopIteration:
        return
