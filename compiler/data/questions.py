"""Questions about pictures: the held-out set of tiny-llava, a JSON Lines file, or a folder of pictures with prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from lmmprune.compiler.runtime.check_text import check_text
from lmmprune.compiler.runtime.open_picture import load_image
from lmmprune.errors import InputError, require
from lmmprune.limits import is_directory, is_file, parse_json

TINY_LLAVA = "tiny-llava"
PICTURES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""Suffixes of the files of a folder that count as pictures."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question about one picture, or about several.

    Attributes:
        picture: what tells its picture, or pictures, from others; questions about the same share the vision pass.
        load: reads the picture, the first one of several.
        more: read the others, in the prompt's order.
        video: The file, where it is about a video; ``load`` refuses to be called then.
        where: The line that it stands in, for messages; empty: in no file.
        prompt: the bare question.
        answers: any of them is right; none where nobody knows.
        kind: for the breakdown; None if there are no kinds.
        options: the texts behind the letters A, B, ... that the prompt offers; empty where it offers none.
        group: what tells questions that count only together from others; None: it counts for itself.
    """

    picture: str
    load: Callable[[], Image.Image]
    prompt: str
    answers: tuple[str, ...]
    kind: str | None = None
    options: tuple[str, ...] = ()
    group: str | None = None
    more: tuple[Callable[[], Image.Image], ...] = ()
    video: Path | None = None
    where: str = ""

    def pictures(self) -> list[Image.Image]:
        """Read all its pictures."""
        return [self.load(), *(load() for load in self.more)]


def one_picture_each(questions: Sequence[Question], what: str) -> None:
    """Refuse questions about several pictures.

    Args:
        questions: All of them.
        what: Who takes one picture, for the message.

    Raises:
        InputError: There is one.
    """
    if (several := next((question for question in questions if question.more), None)) is not None:
        raise InputError(
            f"{what} asks about one picture at a time, '{several.prompt}' is about {1 + len(several.more)}: leave it"
            " out; eval and compare take it"
        )


def load_questions(spec: str) -> list[Question]:
    """Return the questions of ``tiny-llava`` (2,000, fixed) or of a JSON Lines file.

    A line holds ``image`` (a path, relative to the file; a list of paths where a bundle takes several pictures) or
    ``video`` (a path), ``prompt`` (with ``<image>`` at each one's place, or without any), ``answer`` or ``answers``,
    and perhaps ``kind``.

    Raises:
        InputError: Neither, or a line or a picture is missing or wrong.
        MissingExtraError: ``tiny-llava`` needs scikit-learn, which isn't installed.
    """
    if spec == TINY_LLAVA:
        return _tiny_llava()
    path = Path(spec)
    if not is_file(path):
        raise InputError(f"'{spec}' isn't a file: give '{TINY_LLAVA}' or a JSON Lines file with image, prompt, answer")
    return _lines(path, answered=True)


def load_examples(spec: str, prompts: Sequence[str] = ()) -> list[Question]:
    """Return pictures with prompts, whose answers may be unknown.

    Args:
        spec: As for ``load_questions``, where ``answer`` may be left out; or a folder of pictures.
        prompts: Asked about each picture of a folder.

    Raises:
        InputError: Neither, nothing in it, prompts for a file that has its own or none for a folder.
        MissingExtraError: As ``load_questions``.
    """
    path = Path(spec)
    if spec != TINY_LLAVA and is_directory(path):
        return _folder(path, prompts)
    if prompts:
        raise InputError(f"--prompt is for a folder of pictures; '{spec}' has its own: leave it out")
    if spec == TINY_LLAVA:
        return _tiny_llava()
    if not is_file(path):
        raise InputError(
            f"there is no '{spec}': give '{TINY_LLAVA}', a JSON Lines file with image and prompt, or a folder of"
            " pictures with --prompt"
        )
    return _lines(path, answered=False)


def _folder(path: Path, prompts: Sequence[str]) -> list[Question]:
    if not prompts:
        raise InputError(f"'{path}' is a folder of pictures: say with --prompt what to ask about each")
    pictures = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES and file.is_file())
    if not pictures:
        raise InputError(f"'{path}' holds no pictures ({', '.join(sorted(PICTURES))})")

    return [
        Question(picture=str(file), load=partial(load_image, file), prompt=check_text(prompt, "--prompt"), answers=())
        for file in pictures
        for prompt in prompts
    ]


def _lines(path: Path, *, answered: bool) -> list[Question]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"'{path}' can't be read as text ({error})") from error
    questions = [_question(line, path, number, answered) for number, line in enumerate(lines, 1) if line.strip()]
    if not questions:
        raise InputError(f"'{path}' holds no questions")
    return questions


def _tiny_llava() -> list[Question]:
    require("sklearn", "export")
    from lmmprune.models.tiny_llava.dataset import heldout

    return [
        Question(
            picture=str(example.image_id),
            load=example.image.copy,
            prompt=example.question,
            answers=(example.answer,),
            kind=example.kind,
        )
        for example in heldout()
    ]


def _question(line: str, path: Path, number: int, answered: bool) -> Question:
    where = f"line {number} of '{path}'"
    try:
        row: Any = parse_json(line)
    except ValueError as error:
        raise InputError(f"{where} isn't JSON ({error})") from error
    if not isinstance(row, Mapping):
        raise InputError(f"{where} isn't an object with image, prompt and answer")
    known = "answer" in row or "answers" in row
    answers = row.get("answers", [row["answer"]] if "answer" in row else [])
    texts = isinstance(answers, list) and all(isinstance(answer, str) for answer in answers)
    if not texts or ((answered or known) and not answers):
        raise InputError(f"{where} needs 'answer' (a text) or 'answers' (a list of texts)")
    named = row.get("image", row.get("video"))
    moves = "image" not in row and "video" in row
    names = named if isinstance(named, list) and named else [named]
    one = len(names) == 1 or not moves
    if not isinstance(row.get("prompt"), str) or not all(isinstance(name, str) for name in names) or not one:
        raise InputError(
            f"{where} needs 'image' (a path, or a list of paths) or 'video' (a path), and 'prompt' (a text)"
        )
    files = [path.parent / str(name) for name in names]
    if (missing := next((file for file in files if not is_file(file)), None)) is not None:
        raise InputError(f"{where}: there is no {'video' if moves else 'picture'} '{missing}'")
    kind = row.get("kind")
    load, *more = (partial(_no_picture if moves else load_image, file) for file in files)
    return Question(
        picture=" + ".join(map(str, files)),
        load=load,
        more=tuple(more),
        video=files[0] if moves else None,
        prompt=check_text(row["prompt"], f"{where}: the prompt"),
        answers=tuple(answers),
        kind=None if kind is None else str(kind),
        where=where,
    )


def _no_picture(video: Path) -> Image.Image:
    raise InputError(f"'{video}' is a video, and a picture is asked about here: leave it out; eval takes it")
