"""The stages of a plan: shapes and inputs of what a board times, from the bundle and the question alone."""

import dataclasses

import numpy as np
import pytest
from runtime_fixtures import make_bundle

from lmmprune.compiler.build.profiles import decoder_profiles
from lmmprune.compiler.deploy.stages import stages_of
from lmmprune.compiler.deploy.write_plan import write_plan
from lmmprune.compiler.targets.targets import resolve
from lmmprune.errors import InputError


def test_sizes_of_the_stages(tmp_path):
    bundle = make_bundle(tmp_path / "cut", keep=8, dtype="float16", target="tensorrt-10.3")
    cache = dataclasses.replace(bundle.manifest.cache, length_offsets=(0, -3))
    bundle = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, cache=cache))
    profiles = {"decoder": decoder_profiles(bundle.manifest, resolve("tensorrt-10.3"))}
    vision, prefill, decode = stages_of(bundle, profiles, "what?")
    length = len("<") + len("USER: ") + 8 + len("\nwhat? ASSISTANT:")
    assert vision.shapes == {}
    assert prefill.shapes["input_ids"] == prefill.shapes["position_ids"] == (1, length)
    assert {prefill.shapes[name] for pair in cache.past for name in pair} == {(1, 2, 0, 4)}
    assert (prefill.inputs["input_ids"] == bundle.manifest.prompt.image_token_id).sum() == 8
    np.testing.assert_array_equal(prefill.inputs["position_ids"], [range(length)])
    assert decode.shapes["input_ids"] == (1, 1)
    assert decode.inputs["position_ids"].tolist() == [[length]]
    assert decode.shapes["past_key_0"] == decode.shapes["past_value_0"] == (1, 2, length, 4)
    assert decode.shapes["past_key_1"] == decode.shapes["past_value_1"] == (1, 2, length - 3, 4)


def test_positions_of_rows_and_columns(tmp_path):
    """With M-RoPE, the text behind a 4 x 4 picture goes on 4 after the picture's first place."""
    bundle = make_bundle(tmp_path / "rope", dtype="float16", target="tensorrt-10.3")
    inputs = tuple(
        dataclasses.replace(tensor, shape=(3, 1, "seq")) if tensor.name == "position_ids" else tensor
        for tensor in bundle.manifest.decoder.inputs
    )
    decoder = dataclasses.replace(bundle.manifest.decoder, inputs=inputs)
    bundle = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, decoder=decoder))
    profiles = {"decoder": decoder_profiles(bundle.manifest, resolve("tensorrt-10.3"))}
    _, prefill, decode = stages_of(bundle, profiles, "what?")
    start, tail = 1 + len("USER: "), len("\nwhat? ASSISTANT:")
    assert prefill.shapes["position_ids"] == prefill.inputs["position_ids"].shape == (3, 1, start + 16 + tail)
    assert prefill.inputs["position_ids"][1, 0, start : start + 5].tolist() == [start + row for row in (0, 0, 0, 0, 1)]
    assert decode.inputs["position_ids"].ravel().tolist() == [start + 4 + tail] * 3
    assert decode.shapes["past_key_1"] == (1, 2, start + 16 + tail, 4)


def test_question_that_does_not_fit(tmp_path):
    bundle = make_bundle(tmp_path / "b", dtype="float16", target="tensorrt-10.3")
    with pytest.raises(InputError, match=r"prompt of \d+ tokens, the prefill takes 1 to 20: give another --prompt"):
        write_plan([bundle.path], "tensorrt-10.3", tmp_path / "plan", max_prompt=20)
    assert not (tmp_path / "plan").exists()
