"""A cache of fixed length says what a growing one says, for every kind of cut, and is updated in place."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from decoders import SmallDecoder
from exports import exported_again
from PIL import Image

from lmmprune.compiler.build.profiles import decoder_profiles
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.deploy.memory_plan import plan_memory
from lmmprune.compiler.runtime.kv_cache import KvCache
from lmmprune.compiler.runtime.open_picture import load_image
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.compiler.targets import targets
from lmmprune.compiler.triton.repository import write_repository
from lmmprune.compiler.verify.replay import Replay
from lmmprune.compiler.verify.verify import verify
from lmmprune.errors import InputError
from lmmprune.models.registry import tiny_llava_dir
from lmmprune.passes.graph.refusals import Broken, Refused
from lmmprune.passes.lower.static_cache import StaticCache

CAPACITY = 200
VARIANTS = {
    "unpruned": {},
    "before the decoder": {"ratio": 0.5},
    "one cut in the decoder": {"ratio": 0.5, "method": "fastv"},
    "before the first layer": {"ratio": 0.5, "method": "cdpruner"},
    # As engines take them: TensorScatter, and Attention behind it.
    "many cuts": {"ratio": 0.5, "method": "ficoco-l", "target": "tensorrt-rtx", "dtype": "float32"},
    "merged, then cuts": {"ratio": 0.5, "method": "aim", "target": "tensorrt-rtx", "dtype": "float32"},
    "int8": {"ratio": 0.5, "method": "fastv", "int8": True, "calibration_samples": 2},
    "float16": {"ratio": 0.5, "method": "fastv", "dtype": "float16"},
}


def examples(count: int) -> list[tuple[Image.Image, str]]:
    folder = tiny_llava_dir() / "examples"
    rows = [json.loads(line) for line in (folder / "examples.jsonl").read_text().splitlines()[:count]]
    return [(load_image(folder / row["image"]), row["prompt"]) for row in rows]


def decoder(**options: object) -> ir.Graph:
    folder, _ = exported_again(**options)
    return ir.load(folder / Bundle.open(folder).manifest.decoder.file).graph


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_fixed_cache_says_what_a_growing_one_says(variant: str) -> None:
    options = VARIANTS[variant]
    growing, fixed = (Bundle.open(exported_again(**options, **more)[0]) for more in ({}, {"static_cache": CAPACITY}))
    assert fixed.manifest.cache.capacity == CAPACITY
    assert fixed.manifest.opset == 24
    for image, question in examples(2):
        said = []
        for bundle in (growing, fixed):
            replay = Replay(bundle)
            said.append(replay.decode(replay.encode_image(image, 0), question, steps=6))
        assert said[0].tokens == said[1].tokens
        np.testing.assert_array_equal(said[0].lengths, said[1].lengths)
        for name, kept in said[0].kept[0].items():
            np.testing.assert_array_equal(said[1].kept[0][name], kept)
        for one, other in zip(said[0].logits, said[1].logits, strict=True):
            np.testing.assert_allclose(other, one, atol=2e-2 if variant == "float16" else 1e-4)


@pytest.mark.parametrize("variant", ["unpruned", "one cut in the decoder"])
def test_attention_takes_the_mask_that_was_compared(variant: str) -> None:
    def writers(**more: object) -> list[str]:
        graph = decoder(**VARIANTS[variant], **more)
        return [node.inputs[3].producer().op_type for node in graph if node.op_type == "Attention"]

    half = {"dtype": "float16"}  # ort-cpu's attention with a cache is for float32
    assert writers(**half) == ["Expand"] * 4
    assert writers(static_cache=CAPACITY, **half) == ["LessOrEqual"] * 4


def test_the_run_time_updates_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    options = VARIANTS["one cut in the decoder"]
    growing, fixed = (
        Runtime(Bundle.open(exported_again(**options, **more)[0])) for more in ({}, {"static_cache": CAPACITY})
    )
    caches: list[KvCache[object]] = []
    taken = KvCache.take

    def watch(self: KvCache[object], outputs: dict[str, object], tokens: int) -> None:
        before = [value.data_ptr() for value in self._values.values()]  # type: ignore[attr-defined]  # OrtValues
        taken(self, outputs, tokens)
        assert [value.data_ptr() for value in self._values.values()] == before  # type: ignore[attr-defined]  # same
        caches.append(self)

    for image, question in examples(3):
        expected = growing.answer(image, question, 8, stop_at_eos=False).text
        with monkeypatch.context() as patch:
            patch.setattr(KvCache, "take", watch)
            assert fixed.answer(image, question, 8, stop_at_eos=False).text == expected
    assert len(caches) >= 3 * 7
    assert len(set(map(id, caches))) == 1  # each answer has the memory of the one before
    # Two answers at once keep to their own caches.
    (image, first), (other, second) = examples(2)
    alone = [
        fixed.answer(image, first, 6, stop_at_eos=False).text,
        fixed.answer(other, second, 6, stop_at_eos=False).text,
    ]
    turns = [
        iter(fixed.answer(image, first, 6, stop_at_eos=False)),
        iter(fixed.answer(other, second, 6, stop_at_eos=False)),
    ]
    pieces = ["", ""]
    for _ in range(7):
        for index, turn in enumerate(turns):
            pieces[index] += next(turn, "")
    assert pieces == alone


def test_verify_checks_a_fixed_cache() -> None:
    folder, _ = exported_again(**VARIANTS["many cuts"], static_cache=CAPACITY)
    checks = verify(folder, samples=2, progress=lambda what, done, of: None)
    assert all(check.passed for check in checks), checks
    assert {"cache lengths"} <= {check.name for check in checks}


def test_verify_stops_where_a_fixed_cache_is_full() -> None:
    folder, _ = exported_again(ratio=0.5, static_cache=84)
    checks = verify(folder, samples=1, progress=lambda what, done, of: None)
    assert all(check.passed for check in checks), checks
    [logits] = [check.found for check in checks if check.name == "logits"]
    # The prompt takes 82 places; the last token of an answer takes none.
    assert logits.endswith("prefill and 2 decode steps")


def test_an_answer_ends_where_the_cache_is_full() -> None:
    folder, _ = exported_again(ratio=0.5, static_cache=90)
    runtime = Runtime(Bundle.open(folder))
    [(image, question)] = examples(1)
    answer = runtime.answer(image, question, 10**4, stop_at_eos=False)
    _ = answer.text
    assert answer.finish_reason == "positions"
    assert answer.stats.prompt_tokens + len(answer.tokens) == 90 + 1
    with pytest.raises(InputError, match=r"cache of this bundle has room for 90; shorten .* larger --static-cache"):
        runtime.answer(image, "what is this? " * 10)


def test_plans_know_the_length() -> None:
    folder, _ = exported_again(ratio=0.5, static_cache=CAPACITY, target="tensorrt-rtx")
    bundle = Bundle.open(folder)
    target = targets.resolve("tensorrt-rtx")
    prefill, decode = decoder_profiles(bundle.manifest, target)
    assert prefill.shapes["input_ids"][2] == (1, CAPACITY)
    assert "past_key_values.0.key" not in decode.shapes
    plan = plan_memory(bundle, target)
    assert (plan.prompt, plan.length) == (CAPACITY, CAPACITY), "not the model's 512 positions"
    with pytest.raises(InputError, match=rf"--max-prompt {CAPACITY + 1} must be .* at most {CAPACITY}"):
        plan_memory(bundle, target, max_prompt=CAPACITY + 1)
    cache = plan.parts[1]
    # Keys and values of two heads of 32 in float16, in four layers.
    assert cache.bytes == 2 * 4 * 2 * 32 * 2 * CAPACITY
    assert cache.how == f"{CAPACITY} tokens, in place"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"static_cache": 64, "ratio": 0.5}, r"--static-cache 64: expected 74 .* to 512"),
        ({"static_cache": 10**6}, r"expected 146 .* to 512 \(the model's positions\)"),
        (
            {"static_cache": 300, "target": "tensorrt-10.3"},
            r"'tensorrt-10.3' has no TensorScatter; targets that do: ort-cpu",
        ),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        exported_again(**options)


def test_triton_is_refused(tmp_path: Path) -> None:
    folder, _ = exported_again(ratio=0.5, static_cache=CAPACITY)
    with pytest.raises(InputError, match=r"fixed length \(200 tokens\) is updated in place.* without --static-cache"):
        write_repository(Bundle.open(folder), tmp_path / "r")
    assert not (tmp_path / "r").exists()


PAST = tuple((f"past_key_values.{layer}.key", f"past_key_values.{layer}.value") for layer in range(2))


def small() -> tuple[SmallDecoder, ir.Model]:
    decoder = SmallDecoder(layers=2, heads=4, kv_heads=2)
    return decoder, decoder.graph()


def test_the_pass_refuses_what_it_does_not_know() -> None:
    _, model = small()
    with pytest.raises(Refused, match="a cache of 2 layers, cuts before 1"):
        StaticCache(past=PAST, capacity=9, removed=(0,))(model)
    with pytest.raises(Refused, match="cache of 4 tokens is shorter than the 4 that cuts remove"):
        StaticCache(past=PAST, capacity=4, removed=(0, 4))(model)
    join = next(n for n in model.graph if n.op_type == "Concat" and n.inputs[0].name == "past_key_values.1.value")
    join.op_type = "Sum"
    with pytest.raises(Refused, match=r"'past_key_values.1.value' is joined .* by 0 Concats"):
        StaticCache(past=PAST, capacity=9, removed=(0, 0))(model)


def test_a_cache_that_is_still_read_is_broken() -> None:
    _, model = small()
    done = StaticCache(past=PAST, capacity=9, removed=(0, 0))
    done(model)
    past = next(value for value in model.graph.inputs if value.name == "past_key_values.0.key")
    model.graph.append(ir.node("Shape", [past], name="late"))
    with pytest.raises(Broken, match=r"'past_key_values.0.key' is read by Shape, TensorScatter"):
        done.ensures(model)


def test_the_cache_is_declared_in_the_manifest() -> None:
    folder, report = exported_again(ratio=0.5, static_cache=CAPACITY)
    again = Bundle.open(folder).manifest
    assert again == report.manifest
    assert dataclasses.asdict(again.cache)["length"] == "cache_length"
    assert [t.shape for t in again.decoder.inputs if t.name == "cache_length"] == [(1,)]
    assert {t.shape for t in again.decoder.outputs if t.name.startswith("present.")} == {(1, 2, CAPACITY, 32)}
