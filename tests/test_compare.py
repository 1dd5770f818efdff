"""Comparisons: divergences against torch's, answers against transformers' generate, and what the command says."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runtime_fixtures as fx
import torch
from exports import exported
from PIL import Image

import lmmprune
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.bundle.manifest import ModelSource
from lmmprune.compiler.compare.comparison import Comparison
from lmmprune.compiler.compare.fidelity import Fidelity, divergences, measure_fidelity, summarize
from lmmprune.compiler.compare.record import Recorded, log_softmax, record_answer, score_answer
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.errors import InputError, LmmpruneWarning

Cli = Callable[..., tuple[int, str, str]]
RNG = np.random.default_rng(3)


def recorded(scores: np.ndarray[Any, Any], tokens: list[int], k: int) -> Recorded:
    logs = log_softmax(scores)
    ids = np.argsort(-logs, axis=1, kind="stable")[:, :k]
    return Recorded(
        tokens=np.array(tokens, np.int64),
        ids=ids.astype(np.int32),
        log_probabilities=np.take_along_axis(logs, ids, axis=1).astype(np.float32),
    )


def divergence_of_torch(one: np.ndarray[Any, Any], two: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    logs = [torch.log_softmax(torch.from_numpy(scores), dim=1) for scores in (two, one)]
    return torch.nn.functional.kl_div(*logs, reduction="none", log_target=True).sum(dim=1).numpy()


def test_divergences_are_those_of_torch() -> None:
    one, two = 4 * RNG.standard_normal((2, 7, 50))
    exact = divergence_of_torch(one, two)
    assert divergences(recorded(one, [0] * 7, 50), log_softmax(two)) == pytest.approx(exact, rel=1e-5)
    fewer = [divergences(recorded(one, [0] * 7, k), log_softmax(two)) for k in (1, 5, 20, 49)]
    # What is merged can only hide a difference, and hides less and less of it.
    for less, more in zip(fewer, [*fewer[1:], exact], strict=True):
        assert (less <= more + 1e-6).all()
    assert fewer[2] == pytest.approx(exact, rel=0.2)
    assert divergences(recorded(one, [0] * 7, 5), log_softmax(one)) == pytest.approx(0, abs=1e-6)


def test_tokens_that_were_ruled_out_add_nothing() -> None:
    one, two = RNG.standard_normal((2, 3, 6))
    without = np.delete(one, 2, axis=1), np.delete(two, 2, axis=1)
    one[:, 2] = two[:, 2] = -np.inf
    assert divergences(recorded(one, [0] * 3, 6), log_softmax(two)) == pytest.approx(
        divergence_of_torch(*without), rel=1e-5
    )


@pytest.mark.parametrize(
    ("said", "matched"), [([4, 1, 2], 3), ([4, 1, 0], 2), ([4, 3, 2], 1), ([0, 1, 2], 0)], ids=lambda value: str(value)
)
def test_where_an_answer_parts(said: list[int], matched: int) -> None:
    base = recorded(np.eye(5)[[4, 1, 2]] * 3, [4, 1, 2], 5)
    found = measure_fidelity(base, log_softmax(np.eye(5)[said] * 3))
    assert (found.matched, found.steps, found.exact, found.first) == (matched, 3, matched == 3, said[0] == 4)
    assert found.prefix == matched / 3
    right, wrong = 3 - math.log(math.exp(3) + 4), -math.log(math.exp(3) + 4)
    hits = sum(one == other for one, other in zip(said, [4, 1, 2], strict=True))
    assert found.log_likelihood == pytest.approx(hits * right + (3 - hits) * wrong)
    assert found.base_log_likelihood == pytest.approx(3 * right, rel=1e-5)


def test_means_over_examples() -> None:
    def one(kl: float, steps: int, matched: int, lost: float) -> Fidelity:
        return Fidelity(
            first=matched > 0, first_kl=kl, kl=kl, steps=steps, matched=matched, log_likelihood=-1 - lost,
            base_log_likelihood=-1.0,
        )  # fmt: skip

    found = summarize([one(0.1, 4, 4, 0.4), one(0.3, 2, 1, 2.0), one(0.2, 2, 0, 1.6)], ["a", "a", "b"])
    assert (found.examples, found.first.value, found.exact.value) == (3, pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert found.prefix.value == pytest.approx(0.5)
    assert found.kl.value == pytest.approx(0.2)
    assert found.perplexity_ratio.value == pytest.approx(math.exp(4.0 / 8))
    # Two pictures can be drawn as (a,a), (a,b), (b,b): the ends are those of one picture alone.
    assert (found.kl.low, found.kl.high) == pytest.approx((0.2, 0.2))
    ends = sorted([math.exp(2.4 / 6), math.exp(1.6 / 2)])
    assert (found.perplexity_ratio.low, found.perplexity_ratio.high) == pytest.approx(ends)


def test_answers_and_scores_are_those_of_transformers() -> None:
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    from lmmprune.models import tiny_llava

    folder = Path(tiny_llava.__file__).parent
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    runtime = Runtime(Bundle.open(exported()[0]))
    for file, question in zip(
        sorted((folder / "examples").glob("*.png")), ["how many digits are there?", "is there a seven?"], strict=False
    ):
        picture = Image.open(file)
        turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        text = processor.apply_chat_template(turn, add_generation_prompt=True)
        inputs = processor(images=picture, text=text, return_tensors="pt")
        out = model.generate(
            **inputs, max_new_tokens=8, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        tokens = out.sequences[0, inputs["input_ids"].shape[1] :]
        logs = torch.log_softmax(torch.cat(out.logits), dim=1).numpy()
        visual = runtime.encode_image(picture)
        said = record_answer(runtime, visual, question, 8)
        assert said.tokens.tolist() == tokens.tolist()
        assert np.take_along_axis(logs, said.ids.astype(np.int64), 1) == pytest.approx(said.log_probabilities, abs=1e-3)
        # Led through any words, it thinks what transformers thinks behind the same words.
        other = [*tokens.tolist()[:1], 9, 11, 9]
        whole = torch.cat([inputs["input_ids"], torch.tensor([other])], 1)
        masks = {"attention_mask": torch.ones_like(whole), "pixel_values": inputs["pixel_values"]}
        with torch.no_grad():
            logits = model(input_ids=whole, **masks).logits[0, -len(other) - 1 : -1]
        expected = torch.log_softmax(logits, dim=1).numpy()
        assert score_answer(runtime, visual, question, other) == pytest.approx(expected, abs=1e-3)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    fx.make_bundle(folder / "base")
    fx.make_bundle(folder / "same", max_positions=120)
    fx.make_bundle(folder / "pruned", keep=4)
    fx.make_bundle(folder / "short", keep=4, max_positions=40)
    fx.make_bundle(folder / "shorter", keep=4, max_positions=20)
    fx.make_bundle(folder / "another", model="another")
    source = ModelSource(kind="directory", name="runtime_fixtures", digest="0" * 64)
    fx.make_bundle(folder / "finetuned", source=source)
    (folder / "photos").mkdir()
    (folder / "empty").mkdir()
    for number in range(4):
        fx.save_picture(folder / "photos" / f"p{number}.png", number, 5, 9)
    rows = [
        {"image": f"photos/p{number}.png", "prompt": prompt, "kind": kind}
        for number in range(4)
        for prompt, kind in (("hi", "short"), ("how are you", "long"))
    ]
    (folder / "plain.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "broken.jsonl").write_text(json.dumps({"image": "text.png", "prompt": "hi"}))
    (folder / "text.png").write_text("no picture")
    return folder


def compared(made: Path, *others: str, **options: Any) -> Comparison:
    options = {"max_new_tokens": 6, "rounds": 0, "keep_answers": False, **options}
    return lmmprune.compare(made / "base", [made / other for other in others], made / "plain.jsonl", **options)


def test_a_bundle_is_faithful_to_itself_and_pruning_shows(made: Path) -> None:
    found = compared(made, "same", "pruned", rounds=2)
    same, pruned = found.others
    assert same.measures.exact.value == same.measures.first.value == same.measures.prefix.value == 1
    assert same.measures.kl.value == pytest.approx(0, abs=1e-6)
    assert same.measures.perplexity_ratio.value == pytest.approx(1, abs=1e-6)
    assert pruned.measures.kl.value > 0.01
    assert pruned.measures.examples == 8
    assert {*pruned.kinds} == {"short", "long"}
    both = [one.kl.value for one in pruned.kinds.values()]
    assert pruned.measures.kl.value == pytest.approx(np.mean(both))
    assert (pruned.bundle.tokens_before, pruned.bundle.average_tokens) == (16, 4)
    assert {*pruned.bundle.times} == {*pruned.bundle.ratios} == {"ttft_ms", "ms_per_token"}
    assert found.base.ratios["ttft_ms"].value == 1
    worst = [one.fidelity.prefix for one in pruned.worst]
    assert worst == sorted(worst)
    assert found.base.accuracy is None
    json.dumps(found.as_dict(), allow_nan=False)


def test_answers_are_those_of_run(made: Path) -> None:
    (pruned,) = compared(made, "pruned").others
    with lmmprune.load(made / "base") as base, lmmprune.load(made / "pruned") as other:
        for one in pruned.worst:
            assert base.ask(one.picture, one.prompt, max_new_tokens=6).text == one.base_said
            assert other.ask(one.picture, one.prompt, max_new_tokens=6).text == one.said
            assert (one.said == one.base_said) == one.fidelity.exact


def test_accuracy_where_answers_are_known(made: Path) -> None:
    (pruned,) = compared(made, "pruned").others
    rows = [
        {"image": one.picture, "prompt": one.prompt, "answer": one.base_said if number else "never"}
        for number, one in enumerate(pruned.worst)
    ]
    rows.append({"image": rows[0]["image"], "prompt": "nobody knows"})
    (made / "known.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = lmmprune.compare(
        made / "base", [made / "pruned"], made / "known.jsonl", max_new_tokens=6, rounds=0, keep_answers=False
    )
    right = sum(one.fidelity.exact for one in pruned.worst[1:])
    assert found.base.accuracy is not None
    assert found.base.accuracy.value == pytest.approx(7 / 8)
    other = found.others[0].bundle
    assert other.accuracy is not None
    assert other.accuracy_difference is not None
    assert other.accuracy.value == pytest.approx(right / 8)
    assert other.accuracy_difference.value == pytest.approx((right - 7) / 8)
    assert found.others[0].measures.examples == 9


def test_the_base_answers_once(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMMPRUNE_CACHE", str(tmp_path))
    asked: list[str] = []
    encode = Runtime.encode_images
    monkeypatch.setattr(
        Runtime, "encode_images", lambda self, seen: asked.append(self.bundle.path.name) or encode(self, seen)
    )
    first = compared(made, "pruned", keep_answers=True)
    assert asked.count("base") == 4
    asked.clear()
    again = compared(made, "pruned", "same", keep_answers=True)
    assert "base" not in asked
    assert again.others[0].measures == first.others[0].measures
    compared(made, "pruned", keep_answers=True, max_new_tokens=5)
    assert "base" in asked, "answers of another length are others"
    (kept, _) = sorted((tmp_path / "answers").iterdir())
    for file in (tmp_path / "answers").iterdir():
        file.write_bytes(b"PK\x03\x04 damaged")
    assert kept.is_file()
    with pytest.warns(LmmpruneWarning, match="made again"):
        third = compared(made, "pruned", keep_answers=True)
    assert third.others[0].measures == first.others[0].measures


def test_the_command(cli: Cli, made: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    photos = ("compare", made / "base", made / "pruned", "--data", made / "photos", "--prompt", "hi", "--no-timing")
    code, out, err = cli(*photos, "--max-new-tokens", 4, "--html", page)
    assert code == 0, err
    assert "pruned" in out
    assert "4 examples of 4 pictures" in " ".join(out.split())
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 4
    assert "<script" not in text
    assert "http" not in text
    assert "p0.png" in text
    code, out, err = cli(*photos, "--max-new-tokens", 4, "--json", "--max-kl", 1e-9, "--min-agreement", 1)
    assert code == 1
    parsed = json.loads(out)
    assert any("nats per token, at most 1e-09" in line for line in parsed["broken_limits"])
    assert "limit not kept: pruned:" in err
    code, out, err = cli(*photos, "--max-new-tokens", 4, "--max-kl", 1e9, "--min-agreement", 0)
    assert code == 0
    timed = (*photos[:-1], "--rounds", 2, "--max-new-tokens", 4)
    assert cli(*timed, "--max-ttft-ratio", 1e9)[0] == 0
    code, out, err = cli(*timed, "--max-ttft-ratio", 1e-9)
    assert code == 1
    assert "of the base's time" in err


MISTAKES = {
    "data:folder without prompt": ("pruned", "photos", (), "say with --prompt"),
    "data:empty folder": ("pruned", "empty", ("--prompt", "x"), "holds no pictures"),
    "data:nothing": ("pruned", "none", (), "there is no"),
    "data:prompt beside a file": ("pruned", "plain.jsonl", ("--prompt", "x"), "leave it out"),
    "data:no picture": ("pruned", "broken.jsonl", (), "text.png' isn't a picture"),
    "bundle:another model": ("another", "plain.jsonl", (), "bundles of one model"),
    "bundle:other weights": ("finetuned", "plain.jsonl", (), "bundles of one model"),
    "bundle:no room for a prompt": ("shorter", "plain.jsonl", (), "the prompt is too long"),
    "bundle:no room for an answer": ("short", "plain.jsonl", (), "fewer --max-new-tokens"),
    "bundle:twice": ("base", "plain.jsonl", (), "given twice"),
    "limit:agreement": ("pruned", "plain.jsonl", ("--min-agreement", "2"), "give 0 to 1"),
    "limit:kl": ("pruned", "plain.jsonl", ("--max-kl", "-1"), "0 or more"),
    "limit:untimed": ("pruned", "plain.jsonl", ("--no-timing", "--max-ttft-ratio", "1"), "leave out --no-timing"),
    "option:force": ("pruned", "plain.jsonl", ("--force",), "add --html"),
    "page:no folder": ("pruned", "plain.jsonl", ("--html", "nowhere/x.html"), "no directory"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(cli: Cli, made: Path, name: str) -> None:
    other, data, more, message = MISTAKES[name]
    code, out, err = cli("compare", made / "base", made / other, "--data", made / data, *more)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_no_room_for_the_answer(made: Path) -> None:
    runtime = Runtime(Bundle.open(made / "short"))
    with pytest.raises(InputError, match="fewer --max-new-tokens"):
        score_answer(runtime, runtime.encode_image(fx.picture(1)), "hi", [7] * 30)
