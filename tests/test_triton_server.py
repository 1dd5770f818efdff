"""A repository in NVIDIA's Triton server on the CPU: answers of ``lmmprune run``, one line for mistakes."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import runtime_fixtures as fx
from exports import exported_again
from tile_layouts import FEW, oracle_picture, tiled
from triton_server import in_client, serving

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.runtime.open_picture import load_image
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.compiler.triton.repository import write_repository
from lmmprune.models.registry import tiny_llava_dir

PICTURES = sorted((tiny_llava_dir() / "examples").glob("*.png"))[:3]
QUESTIONS = ("which digit is bottommost?", "What digit is in the image?")


@dataclass(frozen=True, kw_only=True)
class Served:
    """A repository, its server, and the bundle that it was made from in a run-time of this process."""

    url: str
    repository: Path
    runtime: Runtime

    def ask(self, *requests: tuple[bytes | list[bytes], str, int | None], together: bool = False) -> list[Any]:
        rows = []
        for given, prompt, tokens in requests:
            images = [given] if isinstance(given, bytes) else given
            rows.append(([base64.b64encode(image).decode() for image in images], prompt, tokens))
        options = ["--together"] if together else []
        answers: list[Any] = in_client("ask_triton.py", self.url, self.repository / "client.py", *options, payload=rows)
        return answers


def serve(bundle: Bundle, scratch: Path) -> Iterator[Served]:
    repository = write_repository(bundle, scratch / "repository", backend="python")
    with serving(repository.path, scratch) as url:
        yield Served(url=url, repository=repository.path, runtime=Runtime(bundle, threads=1))


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Hand-written graphs whose answers are long and whose tokens are bytes."""
    scratch = tmp_path_factory.mktemp("triton")
    yield from serve(fx.make_bundle(scratch / "bundle", keep=4, positions="original"), scratch)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fx.save_picture(tmp_path_factory.mktemp("pictures") / "p.png", 3, 5, 9, 15)


def test_pieces_are_those_of_the_run_time(bytewise: Served, picture: Path) -> None:
    image = load_image(picture)
    found = bytewise.ask((picture.read_bytes(), "hi?", 24), (picture.read_bytes(), "x" * 60, None))
    for pieces, prompt, tokens, finished in zip(
        found, ("hi?", "x" * 60), (24, 128), ("length", "positions"), strict=True
    ):
        expected = list(bytewise.runtime.answer(image, prompt, tokens))
        assert len(expected) > 5
        assert pieces == [*([piece, ""] for piece in expected), ["", finished]]


def test_answers_at_once_do_not_disturb_each_other(bytewise: Served, picture: Path) -> None:
    prompts = [f"{letter}?" for letter in "abcdef"]  # more than the instances that answer
    found = bytewise.ask(*((picture.read_bytes(), prompt, 12) for prompt in prompts), together=True)
    alone = [bytewise.runtime.answer(load_image(picture), prompt, 12).text for prompt in prompts]
    assert ["".join(piece for piece, _ in pieces) for pieces in found] == alone
    assert len(set(alone)) == len(alone)


def test_mistakes_are_one_line_and_the_server_lives(bytewise: Served, picture: Path) -> None:
    good = picture.read_bytes()
    mistakes = {
        "'image' isn't a picture that pillow can read": (b"no picture", "hi?", 3),
        "picture 'image' is damaged": (good[:60], "hi?", 3),
        "picture 'image' has more than 100,000,000 pixels": (fx.png_header(40_000, 40_000), "hi?", 3),
        "the prompt is too long": (good, "x" * 300, 3),
        "max_new_tokens is 0: expected 1 or more": (good, "hi?", 0),
    }
    # A good request behind each mistake.
    found = bytewise.ask(*(request for mistake in mistakes.values() for request in (mistake, (good, "hi?", 3))))
    expected = bytewise.runtime.answer(load_image(picture), "hi?", 3).text
    for message, refused, answered in zip(mistakes, found[::2], found[1::2], strict=True):
        assert message in refused["error"]
        assert "\n" not in refused["error"]
        assert "".join(piece for piece, _ in answered) == expected


@pytest.mark.parametrize(
    "options", [{"method": "fastv", "ratio": 0.5}, {"method": "inflection", "buckets": (0.5, 0.75)}]
)
def test_answers_of_tiny_llava(options: dict[str, Any], tmp_path: Path) -> None:
    """Caches of other lengths behind a cut in the decoder; several counts behind one encoder."""
    bundle = Bundle.open(exported_again(**options)[0])
    for served in serve(bundle, tmp_path):
        asked = [(path, question) for path in PICTURES for question in QUESTIONS]
        found = served.ask(*((path.read_bytes(), question, 8) for path, question in asked))
        for (path, question), pieces in zip(asked, found, strict=True):
            answer = served.runtime.answer(load_image(path), question, 8)
            assert "".join(piece for piece, _ in pieces) == answer.text
            assert pieces[-1] == ["", answer.finish_reason]
            assert answer.finish_reason == "stop"


def test_several_pictures(tmp_path: Path) -> None:
    bundle = Bundle.open(exported_again(ratio=0.5, images=2)[0])
    pair = [path.read_bytes() for path in PICTURES[:2]]
    marked = "Is <image> the same as <image>?"
    for served in serve(bundle, tmp_path):
        requests = [(pair, QUESTIONS[0], 8), (pair, marked, 8), (pair[:1], QUESTIONS[0], 8)]
        found = served.ask(*requests, ([*pair, pair[0]], "?", 8))
        pictures = [load_image(path) for path in PICTURES[:2]]
        asked = [(pictures, QUESTIONS[0]), (pictures, marked), (pictures[:1], QUESTIONS[0])]
        for (images, question), pieces in zip(asked, found[:3], strict=True):
            assert "".join(piece for piece, _ in pieces) == served.runtime.answer(images, question, 8).text
        assert "3 pictures, this bundle takes 1 to 2 pictures" in found[3]["error"]


def test_tiles_of_a_picture(tmp_path: Path) -> None:
    """A picture of its own grid, and one that goes into another than the processor's, side by side."""
    made = tiled("InternVL3-1B-hf")
    bundle = Bundle.open(made.bundle(tiles=FEW, ratio=0.5, method="cls", positions="original", images=2))
    for name, size in (("square", (100, 100)), ("wide", (300, 60))):
        oracle_picture(made.layout).resize(size).save(tmp_path / f"{name}.png")
    pictures = [tmp_path / "square.png", tmp_path / "wide.png"]
    data = [path.read_bytes() for path in pictures]
    for served in serve(bundle, tmp_path):
        found = served.ask((data[0], QUESTIONS[0], 6), (data, QUESTIONS[1], 6))
        images = [load_image(path) for path in pictures]
        for given, question, pieces in zip((images[:1], images), QUESTIONS, found, strict=True):
            answer = served.runtime.answer(given, question, 6)
            assert "".join(piece for piece, _ in pieces) == answer.text
            assert answer.stats.tiles == ("2x2", "1x3")[: len(given)]


def test_requests_that_wait_are_rows_of_a_batch(tmp_path: Path) -> None:
    path, _ = exported_again(ratio=0.5, batch=3)
    asked = [(picture.read_bytes(), QUESTIONS[place % 2], 8) for place, picture in enumerate(PICTURES * 2)]
    mistakes = [(b"no picture", "hi?", 3), (asked[0][0], "what? " * 300, 3)]
    for served in serve(Bundle.open(path), tmp_path):
        found = served.ask(*asked, *mistakes, together=True)
        alone = [
            served.runtime.answer(load_image(picture), question, 8).text
            for picture, (_, question, _) in zip(PICTURES * 2, asked, strict=True)
        ]
        assert ["".join(piece for piece, _ in pieces) for pieces in found[:-2]] == alone
        assert len(set(alone)) > 1
        assert "isn't a picture" in found[-2]["error"]
        assert "the prompt is too long" in found[-1]["error"]
        config = (served.repository / "lmmprune" / "config.pbtxt").read_text()
        assert "max_batch_size: 3" in config
        assert "dynamic_batching" in config
