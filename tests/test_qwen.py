"""Qwen2.5-VL and Qwen3-VL: exported graphs against transformers, the processor, M-RoPE's numbers, and refusals."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import random_qwen
import torch
from exports import TRACED, exported_again
from PIL import Image
from random_qwen import FAMILIES, HEIGHT, IMAGE, MERGE, PATCH, WIDTH
from short_request import short_request
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from verdicts import not_held

from lmmprune.compiler.build.profiles import decoder_profiles
from lmmprune.compiler.bundle.bundle import PREPROCESSOR, TOKENIZER, Bundle
from lmmprune.compiler.cli import main
from lmmprune.compiler.data.calibration import CalibrationSet, Sample
from lmmprune.compiler.deploy.stages import stages_of
from lmmprune.compiler.export.export import export
from lmmprune.compiler.quantize.feeds import SampleFeeds
from lmmprune.compiler.runtime.preprocess import Preprocessor
from lmmprune.compiler.runtime.prompt import Prompter
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.compiler.targets import targets
from lmmprune.compiler.verify.replay import DecoderOutputs, Replay, VisionOutputs
from lmmprune.compiler.verify.verify import verify
from lmmprune.errors import LmmpruneError
from lmmprune.models.facts import facts_of
from lmmprune.models.registry import family_of
from lmmprune.models.source import resolve
from lmmprune.models.weight_names import by_module_name
from lmmprune.passes.methods import METHODS
from lmmprune.passes.reduce.reduce_decoder import ReduceDecoder
from lmmprune.stored import Stored

ROWS, COLUMNS = HEIGHT // (PATCH * MERGE), WIDTH // (PATCH * MERGE)
TOLERANCE = 1e-4
STEPS = 4


def exported(family: str, method: str = "uniform", ratio: float = 0.0, *pairs: tuple[str, str]) -> Bundle:
    """Return a bundle, made from a trace that all of a family share; don't change it."""
    model = str(random_qwen.checkpoint(family))
    return Bundle.open(exported_again(model=model, method=method, ratio=ratio, options=pairs)[0])


def picture(seed: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


@functools.cache
def replayed(family: str) -> tuple[VisionOutputs, DecoderOutputs]:
    replay = Replay(exported(family))
    looked = replay.encode_image(picture())
    return looked, replay.decode(looked, "WHAT?", STEPS)


def packed(pixels: np.ndarray) -> torch.Tensor:
    """[3,H,W] -> the rows that transformers' processor makes of it: square by square, twice in time."""
    squares = pixels.reshape(3, ROWS, MERGE, PATCH, COLUMNS, MERGE, PATCH).transpose(1, 4, 2, 5, 0, 3, 6)
    return torch.from_numpy(np.stack([squares, squares], axis=5).reshape(ROWS * COLUMNS * MERGE**2, -1))


def arguments(looked: VisionOutputs, ids: list[int]) -> dict[str, Any]:
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


@pytest.mark.parametrize(
    ("family", "method", "ratio", "pairs", "names"),
    [
        # The layer that freepruner looks at has windows: the next one hasn't.
        ("qwen2_5_vl", "freepruner", 0.5, (("shallow_layer", "0"),), ["kept indices", "image features"]),
        ("qwen3_vl", "freepruner", 0.5, (), ["kept indices", "image features"]),
        ("qwen3_vl", "divprune", 0.5, (), ["kept indices", "image features"]),
        ("qwen3_vl", "dpp", 0.5, (), ["kept indices", "image features"]),
        ("qwen2_5_vl", "visionzip", 0.5, (), ["kept indices", "image features"]),
        ("qwen2_5_vl", "downsample", 0.5, (), ["kept indices", "image features"]),
        # Merges before the decoder, then cuts inside it.
        ("qwen2_5_vl", "aim", 0.5, (), ["kept indices", "image features", "kept in the decoder"]),
        # In front of the first layer, where what DeepStack adds isn't written yet.
        ("qwen3_vl", "cdpruner", 0.5, (), ["image features", "kept in the decoder"]),
        ("qwen2_5_vl", "mmtok", 0.5, (), ["image features", "kept in the decoder"]),
        # Cuts between the layers behind which DeepStack adds, and merges there.
        ("qwen3_vl", "pyramiddrop", 0.4, (), ["image features", "kept in the decoder"]),
        ("qwen3_vl", "ficoco-l", 0.3, (), ["image features", "kept in the decoder"]),
        # In front of all of them, and by what a layer makes before DeepStack adds.
        ("qwen3_vl", "mmtok", 0.5, (), ["image features", "kept in the decoder"]),
        ("qwen3_vl", "v2drop", 0.3, (), ["image features", "kept in the decoder"]),
    ],
)
def test_pruned_bundles_are_the_references(
    family: str, method: str, ratio: float, pairs: tuple[tuple[str, str], ...], names: list[str]
) -> None:
    bundle = exported(family, method, ratio, *pairs)
    checks = {check.name: check for check in verify(bundle.path, samples=2, model=str(random_qwen.checkpoint(family)))}
    assert [name for name in checks if name in (*names, "logits")] == [*names, "logits"]
    assert not_held(checks.values()) == {}
    worst = [float(x) for check in checks.values() for x in re.findall(r"difference ([\d.e+-]+)", check.found)]
    assert len(worst) == 2
    assert max(worst) < 1e-5
    assert (bundle.manifest.positions, bundle.manifest.llm_positions) == ("original", "original")
    assert (bundle.manifest.grid, bundle.manifest.tokens_before) == ((ROWS, COLUMNS), ROWS * COLUMNS)


def test_everything_that_runs_a_bundle_feeds_three_numbers() -> None:
    bundle = exported("qwen3_vl", "pyramiddrop", 0.4)
    spoken = Replay(bundle)
    looked = spoken.encode_image(picture())
    answer = Runtime(bundle).answer(picture(), "WHAT?", STEPS, stop_at_eos=False)
    _ = answer.text
    assert list(answer.tokens) == spoken.decode(looked, "WHAT?", STEPS).tokens[:STEPS]

    data = CalibrationSet(samples=[Sample(image=picture(), prompt="WHAT?", answer="A CAT")], source="", generic=False)
    steps = SampleFeeds(bundle.manifest, bundle.path, data, bundle.vision).script()[0]
    numbers = [step["position_ids"] for step in steps]
    last = int(numbers[0].max())
    assert [places.tolist() for places in numbers[1:3]] == [[[[last + i]]] * 3 for i in (1, 2)]

    profiles = {"decoder": decoder_profiles(bundle.manifest, targets.resolve("tensorrt-10.3"))}
    _, prefill, decode = stages_of(bundle, profiles, "WHAT?")
    length = prefill.inputs["input_ids"].shape[1]
    assert (prefill.shapes["position_ids"], decode.shapes["position_ids"]) == ((3, 1, length), (3, 1, 1))
    assert decode.inputs["position_ids"].tolist() == [[[last + 1]]] * 3


@pytest.mark.parametrize("family", FAMILIES)
def test_several_pictures_at_once(family: str) -> None:
    model, served = random_qwen.torch_model(family), family_of(family)
    pixels = torch.randn(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together = served.vision_features(model, pixels, False)
        alone = torch.cat([served.vision_features(model, one[None], False) for one in pixels])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (50, 31), (45, 34)])
def test_pictures_are_prepared_as_transformers_processor_does(size: tuple[int, int]) -> None:
    ours = Preprocessor.load(exported("qwen3_vl").file(PREPROCESSOR))
    theirs = Qwen2VLImageProcessorPil.from_pretrained(random_qwen.checkpoint("qwen3_vl"))
    found, expected = ours(picture(3, size)), theirs(picture(3, size), return_tensors="np")
    assert expected["image_grid_thw"].tolist() == [[1, ROWS * MERGE, COLUMNS * MERGE]]
    np.testing.assert_array_equal(packed(found[0]), expected["pixel_values"])
    # Pictures of another shape, which transformers would give other tokens, are stretched.
    assert ours(picture(3, (99, 20))).shape == found.shape


@pytest.mark.parametrize("tied", [False, True])
def test_names_of_released_checkpoints(tied: bool) -> None:
    """Qwen2.5-VL's files call the tower ``visual`` and the decoder ``model``; the 3B model has no ``lm_head``."""
    made = random_qwen.config("qwen2_5_vl")
    made.tie_word_embeddings = tied
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(made)
    entries = {}
    for name, parameter in model.named_parameters():
        old = name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
        entries[old] = Stored(file=Path(), name=old, offset=0, dtype=ir.DataType.FLOAT, shape=tuple(parameter.shape))
    assert ("lm_head.weight" in entries) != tied
    found = by_module_name(model, entries)
    assert found["model.visual.merger.ln_q.weight"].name == "visual.merger.ln_q.weight"
    assert found["lm_head.weight"].name == ("model.embed_tokens.weight" if tied else "lm_head.weight")


def test_sizes_of_pictures() -> None:
    for alias, size in (("qwen2.5-vl-3b", 448), ("qwen2.5-vl-7b", 448), ("qwen3-vl-2b", 512)):
        spec = resolve(alias, weights="dummy").vision
        assert (spec.image_size, spec.grid, spec.tokens, spec.merge) == ((size, size), (16, 16), 256, 2)
    spec = resolve("qwen2.5-vl-7b", weights="dummy", image_size=(224, 336)).vision
    assert (spec.image_size, spec.grid, spec.tokens) == ((224, 336), (8, 12), 96)


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("qwen2_5_vl", {"method": "cls"}, "method 'cls' needs a CLS token"),
        ("qwen2_5_vl", {"method": "tome"}, "method 'tome' cuts inside the encoder"),
        ("qwen3_vl", {"method": "aim"}, "vision_output: method 'aim' makes new tokens, and this model's decoder also"),
        ("qwen3_vl", {"positions": "contiguous"}, "this model numbers visual tokens by their row and column"),
        # 40 pixels are five tokens, and two and a half windows.
        ("qwen2_5_vl", {"image_size": (40, 32)}, "40 x 32 pixels: this tower works in squares of 16 pixels"),
        ("qwen3_vl", {"image_size": (36, 32)}, "36 x 32 pixels: this tower works in squares of 8 pixels"),
        ("llava", {"model": "tiny-llava", "image_size": (448, 448)}, "LLaVA-1.5 takes 96 x 96 pixels; leave it out"),
    ],
)
def test_what_cant_be_done_is_refused(family: str, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    given = {"model": str(random_qwen.checkpoint(family)) if family in FAMILIES else "", "ratio": 0.5} | change
    with pytest.raises(LmmpruneError, match=re.escape(message)) as caught:
        export(short_request(output=tmp_path / "out", **given), traced=TRACED)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_visual_tokens_inside_the_decoder_arent_renumbered() -> None:
    decoder = TRACED(resolve(str(random_qwen.checkpoint("qwen2_5_vl")))).decoder
    stages = METHODS["fastv"]().plan(facts_of(resolve(str(random_qwen.checkpoint("qwen2_5_vl")))), 18)
    cut = ReduceDecoder(method="fastv", stages=stages, image_tokens=24, prefix=3, positions="contiguous")
    with pytest.raises(LmmpruneError, match="a token keeps the place that it has in the picture"):
        cut(decoder)


@pytest.mark.parametrize("text", ["4a", "448x448x448", "x", "-3"])
def test_sizes_that_arent_sizes(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["export", "--model", "qwen3-vl-2b", f"--image-size={text}", "-o", "never"])
    assert f"--image-size {text}: expected pixels" in capsys.readouterr().err


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_of_fixed_length(family: str, tmp_path: Path) -> None:
    export(
        short_request(model=str(random_qwen.checkpoint(family)), output=tmp_path / "b", static_cache=100),
        traced=TRACED,
    )
    replay = Replay(Bundle.open(tmp_path / "b"))
    looked = replay.encode_image(picture())
    spoken, (_, growing) = replay.decode(looked, "WHAT?", STEPS), replayed(family)
    assert spoken.tokens == growing.tokens
    np.testing.assert_array_equal(spoken.lengths, growing.lengths)
    np.testing.assert_allclose(spoken.logits, growing.logits, atol=1e-4)
