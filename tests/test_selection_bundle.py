"""A bundle whose choice is a graph of its own: what its files hold, what it answers, who has to know of the graph."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import onnx
import pytest
from exports import exported_again

from lmmprune.compiler.backends.cpu_session import cpu_session, run_all
from lmmprune.compiler.build.engine_spec import engine_spec
from lmmprune.compiler.bundle import engines
from lmmprune.compiler.bundle.bundle import TOKENIZER, Bundle
from lmmprune.compiler.data.questions import Question, load_questions
from lmmprune.compiler.deploy.memory_plan import plan_memory
from lmmprune.compiler.deploy.stages import stages_of
from lmmprune.compiler.explain.explain import explain
from lmmprune.compiler.flops.formula import TEXT_TOKENS
from lmmprune.compiler.flops.graph import count_bundle
from lmmprune.compiler.onnx_files.load_onnx import load_onnx
from lmmprune.compiler.runtime.decode_steps import decode_steps, drive
from lmmprune.compiler.runtime.prompt import Prompter
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.compiler.runtime.select_tokens import with_image_tokens
from lmmprune.compiler.targets.targets import resolve
from lmmprune.compiler.triton.repository import write_repository
from lmmprune.names import LOGITS
from lmmprune.passes.graph.count_flops import count_flops
from lmmprune.passes.graph.specialize import specialize

STEPS = 6


@functools.cache
def bundle() -> Bundle:
    path, _ = exported_again(ratio=0.5, method="cdpruner")
    return Bundle.open(path)


@functools.cache
def questions() -> list[Question]:
    return list(load_questions("tiny-llava"))[:3]


def graph(of: Bundle, component: str) -> onnx.ModelProto:
    return onnx.load(of.file(of.manifest.graphs[component].file), load_external_data=False)


def places(model: onnx.ModelProto) -> dict[str, dict[str, str]]:
    return {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in model.graph.initializer
        if tensor.external_data
    }


def test_the_decoder_is_the_unpruned_one() -> None:
    path, _ = exported_again()
    mine, plain = (graph(b, "decoder").graph for b in (bundle(), Bundle.open(path)))
    assert [(node.op_type, node.name) for node in mine.node] == [(node.op_type, node.name) for node in plain.node]
    assert not [node.name for node in mine.node if node.name.startswith("lmmprune/")]
    assert len([node for node in graph(bundle(), "selection").graph.node if node.name.startswith("lmmprune/")]) > 72


def test_the_embedding_table_is_stored_once() -> None:
    shared = places(graph(bundle(), "selection")).keys() & places(graph(bundle(), "decoder")).keys()
    (table,) = shared
    assert "embed" in table
    mine, theirs = (places(graph(bundle(), component))[table] for component in ("selection", "decoder"))
    assert mine == theirs
    assert mine["location"] == "selection.onnx.data"
    assert set(engines.sources(bundle(), "decoder")) == {"decoder.onnx", "decoder.onnx.data", "selection.onnx.data"}
    assert set(engines.sources(bundle(), "selection")) == {"selection.onnx", "selection.onnx.data"}


@pytest.mark.parametrize("positions", ["original", "contiguous"])
def test_answers_are_those_of_the_decoder_on_what_was_kept(positions: str) -> None:
    # The decoder has no part of the choice, so its graph is the same for both.
    opened = dataclasses.replace(bundle(), manifest=dataclasses.replace(bundle().manifest, positions=positions))
    runtime = Runtime(opened, threads=1)
    decoder, prompter = cpu_session(opened.decoder), Prompter(opened.manifest, opened.file(TOKENIZER))
    count = opened.manifest.image_tokens
    for question in questions():
        visual = runtime.encode_image(question.load())
        encoded = prompter.encode(question.prompt)
        kept = runtime.prefill_sites(visual, encoded)["llm_input_0"].kept
        assert len(kept) == count == visual.tokens // 2
        prompt, tokens = with_image_tokens(encoded, count), list[int]()
        features = runtime.encode_image(question.load()).features.numpy()[:, kept]

        def choose(outputs: Any, tokens: list[int] = tokens) -> int:
            tokens.append(int(outputs[LOGITS][0, -1].argmax()))
            return tokens[-1]

        steps = decode_steps(opened.manifest, prompt, prompter.positions(prompt, kept), features, STEPS, choose)
        drive(steps, lambda feeds: run_all(decoder, feeds))
        answer = runtime.answer(visual, question.prompt, STEPS, stop_at_eos=False)
        assert answer.text is not None
        assert answer.tokens == tokens
        assert (answer.stats.image_tokens, answer.stats.prompt_tokens) == (count, prompt.length)


def test_the_question_chooses() -> None:
    runtime, question = Runtime(bundle(), threads=1), questions()[0]
    visual = runtime.encode_image(question.load())
    kept = [
        runtime.prefill_sites(visual, runtime.prompter.encode(prompt))["llm_input_0"].kept.tolist()
        for prompt in ("What is in the picture?", "Which color has the largest digit?")
    ]
    assert kept[0] != kept[1]


def test_its_cost_is_part_of_the_prefill() -> None:
    manifest = bundle().manifest
    counted = count_bundle(bundle(), TEXT_TOKENS)
    assert counted == {part: manifest.flops[part]["after"] for part in ("vision", "prefill")}
    decoder = specialize(load_onnx(bundle().decoder, weights=False), seq=manifest.image_tokens + TEXT_TOKENS)
    assert 2 * 144 * 144 < counted["prefill"] - count_flops(decoder) < 0.1 * counted["prefill"]


def test_explain_times_it_by_itself(tmp_path: Path) -> None:
    questions()[0].load().save(tmp_path / "picture.png")
    found = explain([bundle().path], tmp_path / "picture.png", questions()[0].prompt, rounds=1, threads=1)
    (variant,) = found.variants
    assert list(variant.phases) == ["vision", "selection", "prefill", "decode"]
    assert all(total.total_ms > 0 for total in variant.phases.values())


def test_engines_and_plans_know_it() -> None:
    opened = bundle()
    manifest, target = opened.manifest, resolve("tensorrt-rtx")
    spec = engine_spec(manifest, target, max_prompt=140)
    (profile,) = spec.profiles["selection"]
    low, _, high = profile.shapes["input_ids"]
    assert (low, high) == ((1, manifest.prefix + 144 + 1), (1, 140 + 72))
    assert [low for low, _, _ in (spec.profiles["decoder"][0].shapes["input_ids"],)] == [(1, 1)]
    stages = {stage.name: stage for stage in stages_of(opened, spec.profiles, "What is it?")}
    assert list(stages) == ["vision", "selection", "prefill", "decode"]
    lengths = [stages[name].inputs["input_ids"].shape[1] for name in ("selection", "prefill", "decode")]
    assert lengths[0] - lengths[1] == 72
    assert lengths[2] == 1
    (weights,) = (part for part in plan_memory(opened, target).parts if part.name == "weights")
    assert weights.bytes == opened.bytes + manifest.files["selection.onnx.data"].bytes


def test_triton_serves_it(tmp_path: Path) -> None:
    written = write_repository(bundle(), tmp_path / "models")
    assert "selection" in written.models
    found = {file.name for file in (written.path / "decoder" / "1").iterdir()}
    assert {"decoder.onnx", "decoder.onnx.data", "selection.onnx.data"} <= found
    found = {file.name for file in (written.path / "selection" / "1").iterdir()}
    assert {"selection.onnx", "selection.onnx.data"} <= found
