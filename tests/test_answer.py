"""A model from Python: pictures of every kind, answers that are read once, twice, half, at once, and too late."""

from __future__ import annotations

import gc
import io
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import runtime_fixtures as fx
from engine_fixtures import add_engines, fake_gpu
from exports import exported
from PIL import Image

import lmmprune
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.errors import InputError
from lmmprune.models.registry import tiny_llava_dir

LOOK = (3, 5, 9, 15)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answer")
    fx.make_bundle(folder / "out", keep=4)
    fx.save_picture(folder / "p.png", *LOOK)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> lmmprune.Model:
    return lmmprune.load(folder / "out")


@pytest.fixture
def picture(folder: Path) -> Path:
    return folder / "p.png"


def in_memory(path: Path) -> io.BytesIO:
    file = io.BytesIO(b"before " + path.read_bytes())
    file.seek(7)
    return file


KINDS: dict[str, Callable[[Path], Any]] = {
    "path": lambda path: path,
    "text": str,
    "bytes": Path.read_bytes,
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "open file": lambda path: path.open("rb"),
    "file in memory": in_memory,
    "PIL": Image.open,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_may_be_anything(model: lmmprune.Model, picture: Path, kind: str) -> None:
    expected = model.ask(picture, "hi?", max_new_tokens=8)
    encoded = model.encode(KINDS[kind](picture))
    assert encoded.kept is not None
    assert encoded.kept.tolist() == list(LOOK)
    assert [model.ask(encoded, "hi?", max_new_tokens=8).text for _ in range(2)] == [expected.text] * 2


def test_a_pil_image_is_turned_upright_too(model: lmmprune.Model, folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    fx.picture(*LOOK).save(folder / "turned.png", exif=exif)
    kept = [model.encode(source).kept for source in (folder / "turned.png", Image.open(folder / "turned.png"))]
    assert [found.tolist() for found in kept if found is not None] == [sorted(15 - place for place in LOOK)] * 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda path: 3, "the picture is a int: give a path"),
        (lambda path: path.open(encoding="latin-1"), "a file open for text"),
        (lambda path: b"no picture", "'bytes in memory' isn't a picture"),
        (lambda path: path.read_bytes()[:60], "'bytes in memory' is damaged"),
        (lambda path: path.parent / "none.png", "there is no picture"),
    ],
)
def test_what_isnt_a_picture_is_one_line(
    model: lmmprune.Model, picture: Path, wrong: Callable[[Path], Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        model.encode(wrong(picture))
    assert "\n" not in str(caught.value)


def test_an_answer_in_pieces_is_the_answer(model: lmmprune.Model, picture: Path) -> None:
    answer, whole = (give(picture, "hi?", max_new_tokens=8) for give in (model.answer, model.ask))
    assert answer.tokens == [], "nothing is generated before it is read"
    assert len(whole.tokens) == 8
    assert "".join(answer) == whole.text
    assert (answer.tokens, answer.finish_reason) == (whole.tokens, whole.finish_reason) == (whole.tokens, "length")
    assert whole.kept is not None
    assert whole.kept.tolist() == list(LOOK)


def test_no_tokens(model: lmmprune.Model, picture: Path) -> None:
    answer = model.ask(picture, "hi?", max_new_tokens=0)
    assert (answer.text, answer.tokens, list(answer), answer.finish_reason) == ("", [], [], "length")
    stats = answer.stats
    assert (stats.new_tokens, stats.prefill_ms, stats.decode_ms, stats.ms_per_token) == (0, 0, 0, None)
    assert stats.prompt_tokens > 4
    with pytest.raises(InputError, match="max_new_tokens is -1: expected 0 or more"):
        model.answer(picture, "hi?", max_new_tokens=-1)


def test_reading_twice_gives_the_same_pieces(model: lmmprune.Model, picture: Path) -> None:
    answer = model.answer(picture, "hi?", max_new_tokens=8, temperature=3.0)
    first = list(answer)
    assert len(first) > 2
    assert list(answer) == first
    assert len(answer.tokens) == 8
    assert answer.text == "".join(first)


@pytest.mark.parametrize("leave", ["break", "close", "drop"])
def test_leaving_the_loop_ends_the_answer(folder: Path, picture: Path, leave: str) -> None:
    model = lmmprune.load(folder / "out")
    answer, pieces = model.answer(picture, "hi?", max_new_tokens=30), []
    if leave == "break":
        for piece in answer:
            pieces.append(piece)
            if len(pieces) == 2:
                break
    else:
        reader = iter(answer)
        pieces += [next(reader), next(reader)]
        if leave == "close":
            reader.close()
        del reader
    gc.collect()
    assert (answer.finish_reason, answer.text, list(answer)) == ("closed", "".join(pieces), pieces)
    assert answer.stats.new_tokens == len(answer.tokens) < 30
    assert model.runtime._caches.spare is not None, "the next answer finds its cache"
    again = model.ask(picture, "hi?", max_new_tokens=30)
    assert again.text.startswith(answer.text)
    assert again.finish_reason == "length"


def test_a_second_loop_inside_the_first_is_refused(model: lmmprune.Model, picture: Path) -> None:
    answer = model.answer(picture, "hi?", max_new_tokens=8)
    for _ in answer:
        with pytest.raises(InputError, match="is being read already"):
            list(answer)
        with pytest.raises(InputError, match="is being read already"):
            _ = answer.text
    assert answer.text == model.ask(picture, "hi?", max_new_tokens=8).text


def test_seeds(model: lmmprune.Model, picture: Path) -> None:
    def text(**options: Any) -> str:
        return model.ask(picture, "hi?", max_new_tokens=24, **options).text

    assert text(temperature=2.0, seed=5) == text(temperature=2.0, seed=5)
    assert text(temperature=2.0, seed=5) != text(temperature=2.0, seed=6)
    assert text(temperature=0) == text(temperature=2.0, top_k=1, seed=1) == text()


def test_the_checkpoints_rules_come_before_the_draw(folder: Path, picture: Path) -> None:
    plain = lmmprune.load(folder / "out").ask(picture, "hi?", max_new_tokens=40, temperature=1.0, seed=1)
    applied = {"suppress_tokens": plain.tokens[:4]}
    fx.make_bundle(folder / "rules", keep=4, generation={"applied": applied, "ignored": {}})
    with lmmprune.load(folder / "rules") as model:
        for seed in range(5):
            found = model.ask(picture, "hi?", max_new_tokens=40, temperature=1.0, seed=seed)
            assert not {*found.tokens} & {*plain.tokens[:4]}


def test_an_option_is_refused_before_the_picture_is_read(model: lmmprune.Model) -> None:
    with pytest.raises(InputError, match="top_p"):
        model.answer("none.png", "hi?", temperature=1.0, top_p=2.0)
    with pytest.raises(InputError, match="stop string is empty"):
        model.answer(fx.picture(1), "hi?", stop="")


def test_a_closed_model_says_so(folder: Path, picture: Path) -> None:
    with lmmprune.load(folder / "out") as model:
        encoded, begun, half = model.encode(picture), *(model.answer(picture, "hi?") for _ in range(2))
        reader = iter(half)
        next(reader)
        done = model.ask(picture, "hi?", max_new_tokens=3)
    uses: list[Callable[[], object]] = [
        lambda: model.encode(picture),
        lambda: model.answer(picture, "hi?"),
        lambda: model.ask(encoded, "hi?"),
        lambda: list(begun),
        lambda: next(reader),
        lambda: half.text,
    ]
    for use in uses:
        with pytest.raises(InputError, match="is closed: load it again") as caught:
            use()
        assert "\n" not in str(caught.value)
    assert done.text == "".join(done), "what was said stays"
    model.close()  # closing twice is fine


def at_once(work: Callable[[int], Any], count: int) -> list[Any]:
    """Run the same work in four threads that start together."""
    gate = threading.Barrier(4)

    def begin(index: int) -> Any:
        if index < 4:
            gate.wait()
        return work(index)

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(begin, range(count)))


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5}])
def test_four_threads_get_the_answers_of_one(folder: Path, options: dict[str, Any]) -> None:
    pictures = [fx.picture(*places) for places in (LOOK, (1, 2), (7, 8, 9), (0, 4, 12))]

    def work(index: int) -> tuple[str, list[int]]:
        drawn = {**options, "seed": index} if options else {}
        answer = model.ask(pictures[index % 4], "x" * (index + 1), max_new_tokens=30, **drawn)
        return answer.text, answer.tokens

    with lmmprune.load(folder / "out") as model:
        alone = [work(index) for index in range(16)]
        assert len({text for text, _ in alone}) == 16
        for _ in range(3):
            assert at_once(work, 16) == alone


def test_four_threads_on_tiny_llava() -> None:
    path, _ = exported(ratio=0.5, method="fastv")
    examples = sorted((tiny_llava_dir() / "examples").glob("*.png"))

    def work(index: int) -> str:
        return model.ask(examples[index % len(examples)], "What digit is in the image?", max_new_tokens=8).text

    with lmmprune.load(path) as model:
        alone = [work(index) for index in range(8)]
        assert at_once(work, 8) == alone


def test_threads_take_turns_on_a_gpu(tmp_path: Path) -> None:
    bundle = fx.make_bundle(tmp_path / "out", keep=4, target="tensorrt-rtx")
    add_engines(bundle)
    with fake_gpu():
        runtime = Runtime(bundle)

        def work(index: int) -> str:
            return runtime.answer(fx.picture(*LOOK), "x" * (index + 1), 12).text

        alone = [work(index) for index in range(8)]
        assert at_once(work, 8) == alone
