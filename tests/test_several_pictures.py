"""Prompts with several pictures: answers as transformers gives them, what each picture keeps, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conversing import assert_conversation
from exports import exported_again
from hub_layouts import LAYOUTS, oracle
from hub_layouts.one_trace import one_trace
from huggingface_hub import constants
from PIL import Image
from short_request import short_request
from verdicts import not_held

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.compare.record import score_answer
from lmmprune.compiler.data.questions import TINY_LLAVA, load_examples
from lmmprune.compiler.export.export import export
from lmmprune.compiler.export.trace import shared_trace
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.compiler.triton.models import configs
from lmmprune.compiler.verify.verify import Check, verify
from lmmprune.errors import ModelError, TargetError
from lmmprune.models.source import resolve

MOST = 3
# What each family's processor takes for a picture inside a text.
QWEN = "<|vision_start|><|image_pad|><|vision_end|>"
PLACES = {
    "llava-1.5-7b-hf": "<image>",
    "llava-interleave-qwen-0.5b-hf": "<image>",
    "InternVL3-1B-hf": "<IMG_CONTEXT>",
    "SmolVLM-256M-Instruct": "<image>",
    "Qwen2-VL-2B-Instruct": QWEN,
    "Qwen2.5-VL-3B-Instruct": QWEN,
    "Qwen3-VL-2B-Instruct": QWEN,
}
MARKED = "Is <image> larger than\n<image>, or is it <image>?"


class Made:
    """A layout on disk, and its exports."""

    def __init__(self, name: str, work: Path) -> None:
        self.layout = LAYOUTS[name]
        self.folder = work / "checkpoint"
        self.folder.mkdir()
        self.layout.write(self.folder, self.layout.layers)
        self.work, self.traced = work, shared_trace()

    def bundle(self, **options: object) -> Path:
        out = self.work / ("out-" + "-".join(map(str, options.values())))
        with one_trace():
            export(
                short_request(model=str(self.folder), output=out, images=MOST, **self.layout.export, **options),
                traced=self.traced,
            )
        return out


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a processor that the folder lacks are looked for nowhere else."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module", params=PLACES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(request.param, tmp_path_factory.mktemp("several"))


def test_the_answer_is_transformers_own(made: Made) -> None:
    runtime = Runtime(Bundle.open(made.bundle(ratio=0.0)), threads=1)
    pictures = [runtime.encode_image(oracle.picture(made.layout, seed)) for seed in (3, 4, 5)]
    said = []
    asked = [(2, oracle.QUESTION, ""), (3, oracle.QUESTION, ""), (3, MARKED, PLACES[made.layout.name])]
    for count, question, place in asked:
        wanted = oracle.expected(
            str(made.folder), made.layout, more=range(4, 3 + count), question=question, place=place
        )
        encoded = runtime.prompter.encode(question, image_tokens=[one.tokens for one in pictures[:count]])
        assert encoded.input_ids[0].tolist() == wanted.prompt
        answer = runtime.answer(pictures[:count], question, oracle.NEW_TOKENS)
        _ = answer.text
        assert answer.tokens == wanted.tokens
        assert answer.stats.images == count
        said.append(answer.tokens)
    if place == "<image>" and runtime.bundle.manifest.prompt.turn:
        words = ("What is in <image>?", "A cat.", "And in <image> or\n<image>?")
        encoded = runtime.prompter.encode(words, image_tokens=[one.tokens for one in pictures])
        assert encoded.input_ids[0].tolist() == oracle.conversation(str(made.folder), made.layout, words, (3, 4, 5))
    if runtime.bundle.manifest.prompt.pictured:
        assert_conversation(made.folder, made.layout, runtime, pictures, placed=(1, 2))
    # Equal answers say something only where it matters which picture stands where.
    plain, turned = (score_answer(runtime, row, MARKED, said[-1]) for row in (pictures, pictures[::-1]))
    assert np.abs(plain - turned).max() > 1e-3


@pytest.mark.parametrize("made", ["Qwen3-VL-2B-Instruct"], indirect=True)
@pytest.mark.parametrize("method", ["freepruner", "cdpruner"])
def test_rows_and_columns_and_deep_features_hold_against_the_reference(made: Made, method: str) -> None:
    """M-RoPE numbers each picture's rows and columns; DeepStack adds features in the layers, also of chosen tokens."""
    path = made.bundle(ratio=0.5, method=method)
    assert_held(verify(path, model=str(made.folder)), kept=method)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "freepruner"},
        {"method": "cdpruner", "positions": "contiguous"},
        {"method": "divprune"},
        {"method": "ficoco-v"},
    ],
    ids=lambda options: options["method"],
)
def test_each_picture_keeps_what_the_reference_keeps(options: dict[str, str]) -> None:
    path, report = exported_again(images=MOST, ratio=0.5, **options)
    assert report.manifest.image_tokens == 72
    assert report.manifest.feature_rows == MOST * 72
    assert_held(verify(path), kept=options["method"])


def assert_held(checks: list[Check], *, kept: str) -> None:
    """Hold kept sets, features and logits, of prompts with one picture to three."""
    assert not not_held(checks)
    found = {check.name: check.found for check in checks}
    places = found["kept in the decoder" if kept == "cdpruner" else "kept indices"]
    assert places.startswith("IoU 1.0000 (lowest 1.0000)")
    assert f"prompts of 1 to {MOST} pictures" in found["logits"]


@pytest.mark.parametrize("method", ["freepruner", "cdpruner"])
def test_fewer_pictures_cost_no_value(method: str) -> None:
    """Nothing reads the rows behind the pictures that are there: bit for bit what a bundle of one picture says."""
    several, one = (
        Runtime(Bundle.open(exported_again(images=images, ratio=0.5, method=method)[0]), threads=1)
        for images in (MOST, 1)
    )
    question = load_examples(TINY_LLAVA)[0]
    scores = [score_answer(run, run.encode_image(question.load()), question.prompt, [7, 8]) for run in (several, one)]
    assert np.array_equal(*scores)


def test_what_a_picture_keeps_is_its_own() -> None:
    runtime = Runtime(Bundle.open(exported_again(images=MOST, ratio=0.5, method="freepruner")[0]), threads=1)
    questions = [question for question in load_examples(TINY_LLAVA)[::7]][:2]
    pictures = [runtime.encode_image(question.load()) for question in questions]
    answer = runtime.answer(pictures, questions[0].prompt, 1)
    assert answer.kept is not None
    first, second = answer.kept[:72], answer.kept[72:]
    assert np.array_equal(first, pictures[0].kept)
    assert np.array_equal(second - 144, pictures[1].kept)
    assert (answer.stats.tokens_before, answer.stats.image_tokens) == (288, 144)


def test_mistakes_are_one_line(refusal: Callable[..., str], tmp_path: Path) -> None:
    path, _ = exported_again(images=MOST, ratio=0.5, method="freepruner")
    one, _ = exported_again(images=1, ratio=0.5, method="freepruner")
    picture = tmp_path / "picture.png"
    load_examples(TINY_LLAVA)[0].load().save(picture)
    two, four = ["--image", picture] * 2, ["--image", picture] * 4
    assert "4 pictures, this bundle takes 1 to 3 pictures" in refusal("run", path, *four, "--prompt", "what?")
    assert "2 pictures, this bundle takes 1 picture per" in refusal("run", one, *two, "--prompt", "what?")
    assert "1 '<image>' for 2 pictures" in refusal("run", path, *two, "--prompt", "what is <image>?")
    assert "3 '<image>' for 2 pictures" in refusal("run", path, *two, "--prompt", "<image><image><image>?")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--images", 0], "--images 0: expected 1 to 64"),
        (["--images", 65], "--images 65: expected 1 to 64"),
        (["--images", 2, "--method", "fastv", "--ratio", 0.5], "cuts at llm_input_2"),
        (["--images", 2, "--buckets", "0.5,0.75", "--method", "inflection"], "--images and --buckets"),
        (["--images", 9], "the pictures take 1296 of the model's"),
        (["--joint", "--ratio", 0.5], "--joint chooses among the tokens of several pictures"),
        (["--joint", "--images", 2], "--joint says how tokens are removed"),
        (["--joint", "--images", 2, "--ratio", 0.5, "--int8"], "--joint and --int8"),
        (["--joint", "--images", 2, "--ratio", 0.5, "--method", "cdpruner"], "cuts at llm_input_0"),
        (["--joint", "--images", 2, "--ratio", 0.5, "--method", "ficoco-v"], "'ficoco-v' works inside the encoder"),
        (["--images", 2, "--template", "{% for m in messages %}{{ m.content[0].image }}{% endfor %}"], "template"),
    ],
)
def test_what_takes_one_picture_says_so(
    options: list[object], line: str, refusal: Callable[..., str], tmp_path: Path
) -> None:
    assert line in refusal("export", "--model", "tiny-llava", "-o", tmp_path / "out", *options)


def test_tiles_take_one_picture(refusal: Callable[..., str], tmp_path: Path) -> None:
    model = ["--model", "llava-v1.6-vicuna-7b", "--weights", "dummy", "--layers", 1]
    said = refusal("export", *model, "--images", 2, "-o", tmp_path / "out")
    assert "--images 2: LLaVA-NeXT takes one picture here (--tiles" in said


@pytest.mark.parametrize("method", ["cls", "divprune", "visionzip", "freepruner"])
def test_a_joint_choice_is_the_references(method: str) -> None:
    path, report = exported_again(images=2, joint=True, ratio=0.75, method=method)
    manifest = report.manifest
    assert (manifest.tokens_before, manifest.image_tokens, manifest.feature_rows) == (288, 72, 72)
    checks = verify(path)
    assert not not_held(checks)
    assert "prompts of 2 to 2 pictures" in next(check.found for check in checks if check.name == "logits")


def test_a_joint_choice_gives_to_the_picture_that_holds_more() -> None:
    """CLS's attention to all patches of both pictures, the largest of them all [the formula of 'cls']."""
    runtime = Runtime(Bundle.open(exported_again(images=2, joint=True, ratio=0.75, method="cls")[0]), threads=1)
    blank, scene = Image.new("RGB", (96, 96), "black"), load_examples(TINY_LLAVA)[0].load()
    shares = []
    for pair in ([blank, scene], [scene, blank], [scene, scene]):
        answer = runtime.answer(pair, "which digit is bottommost?", 1)
        assert answer.kept is not None
        first, second = (answer.kept < 144).sum(), (answer.kept >= 144).sum()
        assert first + second == answer.stats.image_tokens == 72
        assert answer.stats.tokens_before == 288
        shares.append((first, second))
    assert shares[0] == shares[1][::-1], "the order of the pictures decides nothing"
    assert shares[0][0] != shares[0][1]
    assert shares[2] == (36, 36), "equal pictures share"


def test_a_picture_may_keep_nothing_in_a_joint_choice() -> None:
    path, _ = exported_again(images=2, joint=True, keep=2, method="cls")
    runtime = Runtime(Bundle.open(path), threads=1)
    blank, scene = Image.new("RGB", (96, 96), "black"), load_examples(TINY_LLAVA)[0].load()
    (together,) = runtime.encode_images([blank, scene])
    assert sum(together.each) == 2
    assert len(together.each) == 2
    encoded = runtime.prompter.encode("which?", image_tokens=(0, 2))
    assert [count for _, count in encoded.spans] == [0, 2]
    # Behind a picture that keeps nothing everything is numbered as behind all of it, 144 places.
    positions = runtime.prompter.positions(encoded, np.array([144 + 7, 144 + 9]))[0].tolist()
    first, second = (start for start, _ in encoded.spans)
    assert positions[:first] == list(range(first))
    assert positions[second : second + 3] == [second + 144 + place for place in (7, 9, 144)]


def test_a_joint_choice_takes_all_of_its_pictures(refusal: Callable[..., str], tmp_path: Path) -> None:
    path, _ = exported_again(images=2, joint=True, ratio=0.75, method="cls")
    picture = tmp_path / "picture.png"
    load_examples(TINY_LLAVA)[0].load().save(picture)
    assert "1 picture, this bundle chooses among exactly 2" in refusal("run", path, "--image", picture, "--prompt", "?")
    more = ["--image", picture] * 3
    assert "3 pictures, this bundle chooses among exactly 2" in refusal("run", path, *more, "--prompt", "?")
    drawn = ["--image", picture, "-o", tmp_path / "kept.png"]
    assert "1 picture, this bundle chooses among exactly 2" in refusal("show", path, *drawn)
    asked = [*drawn[:2], "--prompt", "?", "--explain"]
    assert "sees 2 pictures together, --explain asks about one" in refusal("bench", path, *asked)
    with pytest.raises(TargetError, match="one picture at a time"):
        configs(Bundle.open(path).manifest, "python")
    with pytest.raises(ModelError, match="--joint: not of InternVL yet"):
        resolve("internvl3-1b", weights="dummy", layers=1, together=2)
