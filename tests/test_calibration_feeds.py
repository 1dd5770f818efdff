"""What a sample runs: the prefill, then token by token through the cache, as it is for users."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import runtime_fixtures as fx
from calibration_fixtures import calibration_bundle, feeds

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.data.calibration import CalibrationSet, Sample
from lmmprune.compiler.quantize.observe import watch_values
from lmmprune.compiler.runtime.decode_steps import Feeds, Outputs, Steps, drive
from lmmprune.compiler.runtime.runtime import Runtime


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return calibration_bundle(tmp_path_factory.mktemp("calibration") / "out")


def recorded(graph: Path, steps: Steps, watched: str) -> list[tuple[Feeds, Outputs]]:
    """Run a sample and return what went in and what came out of each run."""
    run = watch_values(graph, [watched], lambda name, array: None)
    found = []

    def record(given: Feeds) -> Outputs:
        found.append((given, run(given)))
        return found[-1][1]

    drive(steps, record)
    return found


def test_an_answer_goes_through_the_cache_token_by_token(bundle: Bundle) -> None:
    data = CalibrationSet(samples=[Sample(image=fx.picture(3, 9), prompt="hi", answer="yes")], source="", generic=False)
    runs = recorded(bundle.decoder, feeds(bundle, data).decoder()[0](), "state")
    runtime = Runtime(bundle)
    visual, prompt = runtime.encode_image(fx.picture(3, 9)), runtime.prompter.encode("hi")
    positions = runtime.prompter.positions(prompt, visual.kept)
    assert [given["input_ids"].tolist() for given, _ in runs] == [
        prompt.input_ids.tolist(),
        *([[byte]] for byte in b"yes"),
    ]
    assert runs[0][0]["position_ids"].tolist() == positions.tolist()
    last = int(positions[0, -1])
    assert [given["position_ids"].tolist() for given, _ in runs[1:]] == [[[last + step]] for step in (1, 2, 3)]
    past, present = bundle.manifest.cache.past[1][0], bundle.manifest.cache.present[1][0]
    assert [given[past].shape[2] for given, _ in runs] == [0, *(prompt.length + step for step in range(3))]
    for (_, before), (given, _) in itertools.pairwise(runs):
        np.testing.assert_array_equal(given[past], before[present])


def test_without_an_answer_the_models_own_tokens_are_decoded(bundle: Bundle) -> None:
    data = CalibrationSet(samples=[Sample(image=fx.picture(3), prompt="hi")], source="", generic=False)
    runs = recorded(bundle.decoder, feeds(bundle, data).decoder()[0](), "state")
    answer = Runtime(bundle).answer(fx.picture(3), "hi", 4)
    _ = answer.text
    assert [given["input_ids"].item() for given, _ in runs[1:]] == list(answer.tokens)[:4]


def test_an_answer_ends_where_the_positions_end(bundle: Bundle) -> None:
    data = CalibrationSet(
        samples=[Sample(image=fx.picture(3), prompt="x" * 60, answer="y" * 90)], source="", generic=False
    )
    runs = recorded(bundle.decoder, feeds(bundle, data).decoder()[0](), "state")
    assert runs[-1][0]["position_ids"].item() == bundle.manifest.max_positions - 1


# In the prefill layer 1 forgets the first two tokens.
CUT = {
    "past,4] past_key_1": "past1,4] past_key_1",
    "past,4] past_value_1": "past1,4] past_value_1",
    "total,4] present_key_1": "total1,4] present_key_1",
    "total,4] present_value_1": "total1,4] present_value_1",
    "  present_key_1 = Concat <axis = 2> (past_key_1, value)": """
  count = Shape <start = 2, end = 3> (value)
  others = Sub (count, time)
  first = Min (others, lengths)
  later_value = Slice (value, first, far, lengths)
  later_key = Slice (key, first, far, lengths)
  present_key_1 = Concat <axis = 2> (past_key_1, later_value)
""",
    "(past_value_1, key)": "(past_value_1, later_key)",
    "  seen = Add (seen0, seen1)": """
  total0 = ReduceSum <keepdims = 0> (seen0, lengths)
  total1 = ReduceSum <keepdims = 0> (seen1, lengths)
""",
    "ReduceSum <keepdims = 0> (seen, lengths)": "Add (total0, total1)",
}


def test_behind_a_cut_the_cache_is_shorter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    text = fx.DECODER
    for old, new in CUT.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    monkeypatch.setattr(fx, "DECODER", text)
    layout = dataclasses.replace(bundle.manifest.cache, length_offsets=(0, -2))
    cut = fx.make_bundle(tmp_path / "cut", keep=4, cache=layout)
    data = CalibrationSet(samples=[Sample(image=fx.picture(3), prompt="hello")], source="", generic=False)
    runs = recorded(cut.decoder, feeds(cut, data).decoder()[0](), "state")
    length = runs[0][0]["input_ids"].shape[1]
    lengths = [[given[key].shape[2] for key, _ in layout.past] for given, _ in runs]
    assert lengths == [[0, 0], *([length + step, length - 2 + step] for step in range(4))]
    answer = Runtime(cut).answer(fx.picture(3), "hello", 5)
    _ = answer.text
    assert [int(found["logits"][0, -1].argmax()) for _, found in runs] == list(answer.tokens)
