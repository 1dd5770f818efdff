"""Several questions at once: each row is answered as it would be alone, and as transformers answers a padded batch."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exports import exported_again
from hub_layouts import LAYOUTS, oracle
from hub_layouts.one_trace import one_trace
from huggingface_hub import constants
from short_request import short_request
from verdicts import not_held

from lmmprune.api.model import load
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.data.questions import TINY_LLAVA, load_examples
from lmmprune.compiler.export.export import export
from lmmprune.compiler.measure.bench import bench
from lmmprune.compiler.measure.evaluate import evaluate
from lmmprune.compiler.runtime.answer import Answer
from lmmprune.compiler.runtime.asked import Asked
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.compiler.runtime.sampling import Pick
from lmmprune.compiler.verify.verify import verify
from lmmprune.errors import InputError
from lmmprune.names import KEPT, PADDING
from lmmprune.passes.graph.refusals import Refused

ROWS = 3
STEPS = 6
# Where a batch takes another way: the vision graph, the selection in front of the layers, a cut inside them, several of
# them with merging and a cache of fixed length.
WAYS: dict[str, dict[str, Any]] = {
    "at the output": {"ratio": 0.5},
    "before the layers": {"ratio": 0.5, "method": "mmtok"},
    "inside": {"ratio": 0.5, "method": "fastv"},
    "many cuts, in place": {"ratio": 0.6, "method": "aim", "static_cache": 230},
}


class Tap:
    """Takes the likeliest token, and keeps the logits ``[V]`` that it saw."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def start(self) -> Pick:
        def pick(logits: np.ndarray) -> int:
            self.seen.append(np.array(logits))
            return int(logits.argmax())

        return pick


def questions() -> list[tuple[Any, str]]:
    """Return pictures with questions of unequal length."""
    found = {len(one.prompt): one for one in load_examples(TINY_LLAVA)[:60]}
    lengths = sorted(found)
    chosen = [found[lengths[0]], found[lengths[-1]], found[lengths[len(lengths) // 2]]]
    return [(one.load(), one.prompt) for one in chosen]


def opened(**options: Any) -> Runtime:
    return Runtime(Bundle.open(exported_again(**options)[0]), threads=1)


def together(runtime: Runtime, asked: list[tuple[Any, str]]) -> list[tuple[Answer, np.ndarray]]:
    """Return the answers to questions asked at once, each with its logits ``[STEPS,V]``."""
    taps = [Tap() for _ in asked]
    answers = runtime.answer_batch(
        [
            Asked(image=picture, prompt=prompt, max_new_tokens=STEPS, sampling=tap, stop_at_eos=False)
            for (picture, prompt), tap in zip(asked, taps, strict=True)
        ]
    )
    for answer in answers:
        _ = answer.text
    return [(answer, np.stack(tap.seen)) for answer, tap in zip(answers, taps, strict=True)]


def alone(runtime: Runtime, picture: Any, prompt: str) -> tuple[Answer, np.ndarray]:
    tap = Tap()
    answer = runtime.answer(picture, prompt, STEPS, sampling=tap, stop_at_eos=False)
    _ = answer.text
    return answer, np.stack(tap.seen)


@pytest.mark.parametrize("way", WAYS)
def test_each_row_is_answered_as_it_would_be_alone(way: str) -> None:
    one, several = opened(**WAYS[way]), opened(batch=ROWS, **WAYS[way])
    asked = questions()
    wanted = [alone(one, *question) for question in asked]
    assert len({answer.stats.prompt_tokens for answer, _ in wanted}) == ROWS, "rows of unequal length"

    def hold(found: list[tuple[Answer, np.ndarray]], expected: list[tuple[Answer, np.ndarray]]) -> None:
        for (row, logits), (own, own_logits) in zip(found, expected, strict=True):
            assert row.tokens == own.tokens
            assert np.array_equal(row.kept, own.kept)  # type: ignore[arg-type]  # None where nothing is dropped
            assert np.abs(logits - own_logits).max() < 1e-4

    hold(together(several, asked), wanted)
    hold(together(several, asked[::-1]), wanted[::-1])
    # Fewer than the graphs take, and one question as in any bundle.
    hold(together(several, asked[1:]), wanted[1:])
    hold([alone(several, *asked[0])], wanted[:1])


@pytest.mark.parametrize("way", ["inside", "before the layers"])
def test_each_row_keeps_its_own(way: str) -> None:
    """What stays behind each cut in the decoder: the prefill says it row by row."""
    one, several = opened(**WAYS[way]), opened(batch=ROWS, **WAYS[way])
    sites = []
    for picture, prompt in questions()[:2]:
        found = []
        for runtime in (one, several):
            encoded = runtime.encode_image(picture)
            prompt_of = runtime.prompter.encode(prompt, image_tokens=encoded.tokens)
            found.append(runtime.prefill_sites(encoded, prompt_of))
        assert {*found[0]} == {*found[1]} != set()
        for name, site in found[0].items():
            assert np.array_equal(site.kept, found[1][name].kept)
        sites.append([site.kept.tolist() for site in found[1].values()])
    assert sites[0] != sites[1], "equal choices say nothing of rows"


def test_rows_of_the_prefill_keep_what_they_keep_alone() -> None:
    runtime = opened(batch=ROWS, **WAYS["inside"])
    decoder = runtime._session("decoder")
    kept: list[np.ndarray] = []
    run = decoder.session.run

    class Spy:
        upload, download = decoder.session.upload, decoder.session.download

        def run(self, feeds: Any) -> Any:
            outputs = run(feeds)
            kept.extend(decoder.session.download(value) for name, value in outputs.items() if name.startswith(KEPT))
            return outputs

    decoder.session = Spy()
    asked = questions()
    together(runtime, asked)
    rows = kept[0]
    for row, (picture, prompt) in enumerate(asked):
        encoded = runtime.encode_image(picture)
        [site] = runtime.prefill_sites(encoded, runtime.prompter.encode(prompt, image_tokens=encoded.tokens)).values()
        assert np.array_equal(rows[row], site.kept)


def test_the_rows_are_those_of_a_batch_in_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    layout = LAYOUTS["llava-1.5-7b-hf"]
    model = tmp_path / "checkpoint"
    model.mkdir()
    layout.write(model, layout.layers)
    asked = [(3, "What?"), (4, oracle.QUESTION), (5, "Is there a cat?")]
    with one_trace():
        export(short_request(model=str(model), output=tmp_path / "out", batch=ROWS, **layout.export))
    runtime = Runtime(Bundle.open(tmp_path / "out"), threads=1)
    answers = runtime.answer_batch(
        [
            Asked(image=oracle.picture(layout, seed), prompt=prompt, max_new_tokens=oracle.NEW_TOKENS)
            for seed, prompt in asked
        ]
    )
    said = [answer.tokens for answer in answers if answer.text is not None]
    assert said == oracle.together(str(model), layout, asked)
    assert len({*map(tuple, said)}) > 1, "equal answers say nothing of rows"


def test_a_batch_is_held_against_the_reference() -> None:
    path, report = exported_again(batch=ROWS, **WAYS["inside"])
    assert report.manifest.batch is not None
    # Behind the picture, whose place the cuts know.
    assert report.manifest.batch.padding == report.manifest.prefix + 144
    assert not not_held(verify(path))


def test_answers_are_read_in_any_order_and_thread() -> None:
    model = load(exported_again(batch=ROWS, **WAYS["at the output"])[0], threads=1)
    asked = questions()
    wanted = [model.ask(*question, max_new_tokens=8).text for question in asked]
    answers = model.answer_batch(asked, max_new_tokens=8)
    threads = [threading.Thread(target=lambda answer=answer: answer.text) for answer in answers[::-1]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.text for answer in answers] == wanted
    # One reader leaves, the others go on; each ends for a reason of its own.
    first, second, third = model.answer_batch(asked, max_new_tokens=2, stop=wanted[2][:1])
    for _ in first:
        break
    assert (second.text, third.text) == (model.ask(*asked[1], max_new_tokens=2, stop=wanted[2][:1]).text, "")
    assert third.finish_reason == "stop_string"
    # Any number, in groups.
    assert [one.text for one in model.ask_batch(asked * 2, max_new_tokens=8)] == wanted * 2
    assert [one.text for one in load(exported_again(ratio=0.5)[0]).ask_batch(asked, max_new_tokens=8)] == wanted


def test_evaluations_and_files_of_questions_use_the_rows(cli: Callable[..., Any], tmp_path: Path) -> None:
    path, single = (exported_again(**WAYS["at the output"], **more)[0] for more in ({"batch": ROWS}, {}))
    some = load_examples(TINY_LLAVA)[:8]
    found = [evaluate(Runtime(Bundle.open(one), threads=1), some) for one in (path, single)]
    assert [one.predicted for one in found[0].predictions] == [one.predicted for one in found[1].predictions]
    lines = []
    for number, one in enumerate(some[:4]):
        one.load().save(tmp_path / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "prompt": one.prompt}))
    data = tmp_path / "questions.jsonl"
    data.write_text("\n".join(lines))
    code, out, _ = cli("run", path, "--data", data)
    said = {(one.picture, one.prompt): one.predicted for one in found[1].predictions}
    assert (code, out.splitlines()) == (0, [said[one.picture, one.prompt] for one in some[:4]])
    code, out, _ = cli("run", path, "--data", data, "--json")
    assert [len(one["kept_indices"]) for one in json.loads(out)["answers"]] == [72] * 4


def test_bench_tells_what_a_batch_answers_in_a_second(tmp_path: Path) -> None:
    paths = [exported_again(**WAYS["at the output"], **more)[0] for more in ({}, {"batch": ROWS})]
    picture, prompt = questions()[0]
    picture.save(tmp_path / "picture.png")
    report = bench(paths, tmp_path / "picture.png", prompt, rounds=2, new_tokens=3, threads=1, memory=False)
    assert [row.batch for row in report.rows] == [1, ROWS]
    for row in report.rows:
        found = row.throughput
        assert found is not None
        # Of vision, prefill and two more tokens, in milliseconds, for all rows.
        whole = [
            first + 2 * each for first, each in zip(row.samples["ttft_ms"], row.samples["ms_per_token"], strict=True)
        ]
        assert found.samples == pytest.approx([value / row.batch for value in whole])
        assert found.tokens.median == pytest.approx(3 * found.answers.median)
    assert report.rows[0].throughput is not None
    assert report.rows[0].throughput.ratio.value == 1


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--batch", 0], "--batch 0: expected 1 to 256"),
        (["--batch", 2, "--images", 2], "--batch and --images"),
        (["--batch", 2, "--buckets", "0.5,0.75", "--method", "inflection"], "--batch and --buckets"),
        (["--batch", 2, "--int8-dynamic"], "would let an answer depend on its neighbours"),
        (["--batch", 2, "--ratio", 0.5, "--method", "fastv", "--positions", "contiguous"], "leave --positions"),
    ],
)
def test_what_a_batch_cannot_do_is_refused(
    options: list[object], line: str, refusal: Callable[..., str], tmp_path: Path
) -> None:
    assert line in refusal("export", "--model", "tiny-llava", "-o", tmp_path / "out", *options)


def test_a_score_by_every_word_is_refused() -> None:
    with pytest.raises(Refused, match="'sparsevlm' scores by every word of the question"):
        exported_again(batch=ROWS, ratio=0.5, method="sparsevlm")


def test_a_question_that_is_too_long_costs_no_answer_before_it(cli: Callable[..., Any], tmp_path: Path) -> None:
    path, _ = exported_again(batch=ROWS, **WAYS["at the output"])
    some = questions()
    prompts = [some[0][1], some[1][1], "what? " * 500]
    for number, (picture, _prompt) in enumerate(some[:2]):
        picture.save(tmp_path / f"{number}.png")
    data = tmp_path / "questions.jsonl"
    data.write_text(
        "".join(json.dumps({"image": f"{n % 2}.png", "prompt": text}) + "\n" for n, text in enumerate(prompts))
    )
    code, out, err = cli("run", path, "--data", data)
    assert code == 2
    assert err.startswith(f"lmmprune: error: line 3 of '{data}': the prompt is too long")
    with load(path) as model:
        expected = [model.ask(*one).text for one in some[:2]]
    assert out.splitlines() == expected
    code, out, _ = cli("run", path, "--data", data, "--json")
    assert code == 2
    said = json.loads(out)
    assert said["error"].startswith(f"line 3 of '{data}': the prompt is too long")
    assert [answer["answer"] for answer in said["answers"]] == expected


def test_mistakes_are_one_line(refusal: Callable[..., str], tmp_path: Path) -> None:
    path, _ = exported_again(batch=ROWS, **WAYS["at the output"])
    picture = tmp_path / "picture.png"
    asked = questions()
    asked[0][0].save(picture)
    data = tmp_path / "questions.jsonl"
    data.write_text(json.dumps({"image": "picture.png", "prompt": "what? " * 500}))
    assert "the prompt is too long" in refusal("run", path, "--data", data)
    data.write_text(json.dumps({"image": ["picture.png"] * 2, "prompt": "what?"}))
    assert "2 pictures, this bundle takes 1 picture" in refusal("run", path, "--data", data)
    assert "leave out --image, --video and --prompt" in refusal("run", path, "--data", data, "--prompt", "what?")
    with load(path) as model:
        with pytest.raises(InputError, match="4 questions, this bundle takes 1 to 3 at once"):
            model.answer_batch([*asked, asked[0]])
        with pytest.raises(InputError, match="0 questions"):
            model.answer_batch([])
    with load(exported_again(ratio=0.5)[0]) as model, pytest.raises(InputError, match="export with --batch"):
        model.answer_batch(asked)
    assert PADDING in {tensor.name for tensor in Bundle.open(path).manifest.decoder.inputs}
