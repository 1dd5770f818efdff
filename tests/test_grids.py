"""Several grids of tiles behind one decoder (LLaVA-NeXT, LLaVA-OneVision): chosen and answered as transformers does."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from random_tiles import IMAGE_TOKEN, PINPOINTS, SIDE, checkpoint, exported, whole_processor
from verdicts import not_held

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.bundle.interface import Graph, Tensor, View
from lmmprune.compiler.compare.record import score_answer
from lmmprune.compiler.runtime.choose_view import best_grid
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.compiler.verify.verify import verify
from lmmprune.errors import LmmpruneError
from lmmprune.models.source import resolve

GRIDS = {"llava_next": ((2, 1), (1, 2), (2, 2)), "llava_onevision": ((1, 1), (2, 2))}
NEW_TOKENS = 6


def picture(height: int, width: int) -> Image.Image:
    noise = np.random.default_rng([width, height]).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def view(rows: int, columns: int, side: int) -> View:
    pixels = Tensor(name="pixel_values", dtype="float32", shape=(1 + rows * columns, 3, side, side))
    graph = Graph(file=f"vision_{rows}x{columns}.onnx", inputs=(pixels,), outputs=())
    return View(graph=graph, grid=(2, 2), tiles=(rows, columns), schedule=(), image_tokens=1)


def test_the_grid_is_the_one_that_transformers_chooses() -> None:
    """Over pictures of many shapes and sizes, and lists in several orders, ties included."""
    from transformers.image_processing_utils import select_best_resolution

    grids = [(1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1)]
    lists = [grids, grids[::-1], [(2, 1), (1, 2)], [(1, 2), (2, 1)]]
    sides = [1, 20, 32, 33, 48, 64, 95, 96, 100, 333, 1000]
    seen = set()
    for listed, (height, width) in itertools.product(lists, itertools.product(sides, sides)):
        wanted = select_best_resolution((height, width), [(32 * rows, 32 * columns) for rows, columns in listed])
        found = best_grid([view(rows, columns, 32) for rows, columns in listed], height, width)
        assert found.tiles == (wanted[0] // 32, wanted[1] // 32)
        seen.add(found.tiles)
    assert seen == {*grids}


@pytest.mark.parametrize("family", GRIDS)
def test_answers_are_transformers_own_in_every_grid(family: str) -> None:
    path, report = exported(family, tiles=GRIDS[family])
    assert report.manifest.tiles == (2, 2)
    runtime = Runtime(Bundle.open(path), threads=1)
    model, processor = whole_processor(family)
    said = []
    for rows, columns in GRIDS[family]:
        image = picture(rows * SIDE, columns * SIDE)
        looked = runtime.encode_image(image)
        inputs = processor(image, return_tensors="pt")
        steps = runtime.preprocessor.for_view(looked.view)
        np.testing.assert_array_equal(steps(image), inputs["pixel_values"][0].numpy())
        answer = runtime.answer(looked, "what is it?", NEW_TOKENS)
        _ = answer.text
        assert answer.stats.sizes == (f"{rows}x{columns}",)
        prompt = runtime.prompter.encode("what is it?", image_tokens=looked.tokens).input_ids[0].tolist()
        assert prompt.count(IMAGE_TOKEN) == looked.tokens == answer.stats.tokens_before
        tokens, logs = generated(model, prompt, inputs)
        assert answer.tokens == tokens
        np.testing.assert_allclose(score_answer(runtime, looked, "what is it?", tokens), logs, atol=1e-4)
        said.append(logs[0])
    # Equal answers say something only where they may differ.
    assert all(np.abs(one - other).max() > 1e-3 for one, other in itertools.combinations(said, 2))


def generated(model: Any, prompt: list[int], inputs: Any) -> tuple[list[int], Any]:
    """Return transformers' own answer, and the logarithms of the probabilities that it was chosen from."""
    settings = {"do_sample": False, "pad_token_id": 0, "output_logits": True, "return_dict_in_generate": True}
    with torch.no_grad():
        found = model.generate(input_ids=torch.tensor([prompt]), **inputs, max_new_tokens=NEW_TOKENS, **settings)
    logs = torch.cat(found.logits).double().log_softmax(-1)
    return found.sequences[0, len(prompt) :].tolist(), logs.numpy()


@pytest.mark.parametrize(
    ("family", "options"),
    [("llava_next", {"method": "freepruner"}), ("llava_onevision", {"method": "visionzip", "positions": "contiguous"})],
)
def test_verify_holds_every_grid_against_the_reference(family: str, options: dict[str, str]) -> None:
    path, _ = exported(family, tiles=GRIDS[family], ratio=0.5, **options)
    checks = verify(path, model=str(checkpoint(family)))
    assert not not_held(checks)
    found = {check.name: check.found for check in checks}
    assert found["kept indices"].startswith("IoU 1.0000 (lowest 1.0000)")
    for rows, columns in GRIDS[family]:
        assert f"at {rows}x{columns}" in found["kept counts"]


def test_all_is_what_the_checkpoint_lists_and_the_family_serves() -> None:
    listed = [(height // SIDE, width // SIDE) for height, width in PINPOINTS]
    assert list(resolve(str(checkpoint("llava_next"))).grids) == listed
    # 4 x 4 tiles would be scaled down behind the projector.
    assert (4, 4) not in resolve(str(checkpoint("llava_onevision"))).grids


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"tiles": ((2, 2), (2, 2))}, "--tiles 2x2 is given 2 times"),
        ({"tiles": ((2, 2), (5, 5))}, "--tiles 5x5: the model was trained on 1x2, 2x1, 2x2, 1x3; the nearest is 2x2"),
        ({"tiles": ((2, 2), (1, 2)), "method": "fastv", "ratio": 0.2}, "use one that cuts at vision_output"),
        (
            {"tiles": ((2, 2), (1, 2)), "method": "inflection", "auto": True},
            "several --tiles and --ratio auto",
        ),
        ({"tiles": ((2, 2), (1, 2)), "method": "inflection", "buckets": (0.5, 0.7)}, "several --tiles and --buckets"),
        ({"tiles": ((2, 2), (1, 2)), "image_size": ((32, 32), (64, 64))}, "--image-size: LLaVA-NeXT takes"),
    ],
)
def test_what_can_t_be_is_refused(options: dict[str, Any], line: str) -> None:
    with pytest.raises(LmmpruneError, match=line):
        exported("llava_next", **options)
