"""Qwen2.5-VL and Qwen3-VL: exported graphs against transformers, the processor, M-RoPE's numbers, and refusals."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_qwen
import torch
from PIL import Image
from random_qwen import FAMILIES, HEIGHT, IMAGE, MERGE, PATCH, WIDTH

from lmmprune.compiler.bundle import TOKENIZER, Bundle
from lmmprune.compiler.canonical import shared_trace
from lmmprune.compiler.export import Request, export
from lmmprune.compiler.prompt import Prompter
from lmmprune.compiler.replay import Looked, Replay, Spoken

_ROOT = tempfile.TemporaryDirectory(prefix="lmmprune-qwen-bundles-")
_TRACED = shared_trace()
ROWS, COLUMNS = HEIGHT // (PATCH * MERGE), WIDTH // (PATCH * MERGE)
TOLERANCE = 1e-4
STEPS = 4


@functools.cache
def exported(family: str, method: str = "uniform", ratio: float = 0.0, *pairs: tuple[str, str]) -> Bundle:
    folder = Path(_ROOT.name) / f"{family}-{method}-{ratio}"
    request = Request(
        model=str(random_qwen.checkpoint(family)), output=folder, method=method, ratio=ratio, options=dict(pairs)
    )
    export(request, traced=_TRACED)
    return Bundle.open(folder)


def picture(seed: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


@functools.cache
def replayed(family: str) -> tuple[Looked, Spoken]:
    replay = Replay(exported(family))
    looked = replay.look(picture())
    return looked, replay.say(looked, "WHAT?", STEPS)


def packed(pixels: np.ndarray) -> torch.Tensor:
    """[3,H,W] -> the rows that transformers' processor makes of it: square by square, twice in time."""
    squares = pixels.reshape(3, ROWS, MERGE, PATCH, COLUMNS, MERGE, PATCH).transpose(1, 4, 2, 5, 0, 3, 6)
    return torch.from_numpy(np.stack([squares, squares], axis=5).reshape(ROWS * COLUMNS * MERGE**2, -1))


def arguments(looked: Looked, ids: list[int]) -> dict[str, Any]:
    """Return what transformers' model takes for a picture and these ids."""
    inputs = torch.tensor([ids])
    return {
        "input_ids": inputs,
        "pixel_values": packed(looked.pixels[0]),
        "image_grid_thw": torch.tensor([[1, ROWS * MERGE, COLUMNS * MERGE]]),
        "mm_token_type_ids": (inputs == IMAGE).int(),
    }


def near(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_features_are_transformers(family: str) -> None:
    looked, _ = replayed(family)
    model, given = random_qwen.torch_model(family), arguments(looked, [])
    with torch.no_grad():
        out = model.model.get_image_features(given["pixel_values"], given["image_grid_thw"], return_dict=True)
    levels = [out.pooler_output, *getattr(out, "deepstack_features", [])]
    expected = torch.cat([level[0] for level in levels], dim=-1).numpy()
    assert looked.features.shape == (1, ROWS * COLUMNS, 32 * len(levels))
    assert len(levels) == {"qwen2_5_vl": 1, "qwen3_vl": 3}[family]
    assert expected.std() > 0.1
    near(looked.features[0], expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_prefill_and_cached_steps_are_transformers(family: str) -> None:
    looked, spoken = replayed(family)
    model = random_qwen.torch_model(family)
    ids = spoken.prefix + [IMAGE] * (ROWS * COLUMNS) + spoken.tail
    with torch.no_grad():
        model.model.rope_deltas = None
        out = model(**arguments(looked, ids), use_cache=True)
        rows = [out.logits[0, -1]]
        for token in spoken.tokens[:-1]:
            out = model(input_ids=torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True)
            rows.append(out.logits[0, -1])
    near(spoken.logits, torch.stack(rows).numpy())


@pytest.mark.parametrize("family", FAMILIES)
def test_numbers_of_the_unpruned_picture_are_transformers(family: str) -> None:
    looked, spoken = replayed(family)
    bundle = exported(family)
    prompter = Prompter(bundle.manifest, bundle.file(TOKENIZER))
    ids = spoken.prefix + [IMAGE] * (ROWS * COLUMNS) + spoken.tail
    given = arguments(looked, ids)
    expected, _ = random_qwen.torch_model(family).model.get_rope_index(
        given["input_ids"], given["mm_token_type_ids"], given["image_grid_thw"]
    )
    encoded = prompter.encode("WHAT?")
    assert encoded.input_ids[0].tolist() == ids
    np.testing.assert_array_equal(prompter.positions(encoded, None), expected.numpy())


def test_kept_tokens_and_the_text_behind_them_keep_their_numbers() -> None:
    whole, pruned = exported("qwen2_5_vl"), exported("qwen2_5_vl", "random", 0.5)
    everything, half = (Prompter(bundle.manifest, bundle.file(TOKENIZER)) for bundle in (whole, pruned))
    kept = np.array([0, 2, 3, 5, 7, 11, 12, 13, 18, 20, 22, 23])
    before, after = everything.encode("WHAT?"), half.encode("WHAT?")
    start = before.image_start
    stays = [*range(start), *(start + kept), *range(start + ROWS * COLUMNS, before.length)]
    np.testing.assert_array_equal(half.positions(after, kept), everything.positions(before, None)[..., stays])
    # The picture's numbers end early, its tokens fill the cache all the same.
    assert everything.room(before, everything.positions(before, None)) == 512 - before.length
