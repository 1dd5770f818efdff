"""The folder of a public data set: its files by name, its pictures wherever they lie, and what is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from lmmprune.compiler.data.questions import Question
from lmmprune.compiler.runtime.open_picture import load_image
from lmmprune.errors import InputError
from lmmprune.limits import is_directory, is_file, parse_json, read_json


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder that holds a data set.

    Attributes:
        path: The folder.
        layout: What it should hold, for messages.
        pictures: Where the pictures are; None: where the set's own layout has them.
        missing: Picture that isn't there -> folders where it was looked for.
    """

    path: Path
    layout: str
    pictures: Path | None = None
    missing: dict[str, tuple[Path, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not is_directory(self.path):
            raise InputError(f"'{self.path}' isn't a folder: give one with {self.layout}")
        if self.pictures is not None and not is_directory(self.pictures):
            raise InputError(f"'{self.pictures}' isn't a folder: give the one with the pictures")

    def file(self, name: str, *below: str) -> Path:
        """Return a file of the folder itself, or of one of some folders in it.

        Raises:
            InputError: There is none.
        """
        for folder in (self.path, *(self.path / one for one in below)):
            if is_file(folder / name):
                return folder / name
        raise InputError(f"there is no '{name}' in '{self.path}': give a folder with {self.layout}")

    def files(self, pattern: str, *below: str) -> list[Path]:
        """Return the files of a pattern, of the folder itself or of the first of some folders in it that has any.

        Raises:
            InputError: There are none.
        """
        for folder in (self.path, *(self.path / one for one in below)):
            if found := sorted(folder.glob(pattern)):
                return found
        raise InputError(f"there is no '{pattern}' in '{self.path}': give a folder with {self.layout}")

    def picture(self, name: str, *below: str) -> Path:
        """Return where a picture is; if it is nowhere, the path that it should have is kept as missing.

        Args:
            name: Its name in the set, perhaps with folders.
            below: Folders of the set that it may lie in.
        """
        if self.pictures is not None:
            tried: tuple[Path, ...] = (self.pictures,)
        else:
            tried = (*(self.path / one for one in below), self.path)
        short = Path(name).name
        for path in (path for folder in tried for path in dict.fromkeys((folder / name, folder / short))):
            if is_file(path):
                return path
        self.missing[str(tried[0] / short)] = tried
        return tried[0] / short

    def check(self, questions: Sequence[Question]) -> None:
        """Refuse questions whose picture isn't there.

        Raises:
            InputError: At least one; the message names it.
        """
        gone = sorted({question.picture for question in questions} & {*self.missing})
        if gone:
            pictures = len({question.picture for question in questions})
            looked = ", ".join(f"'{folder}'" for folder in self.missing[gone[0]])
            raise InputError(
                f"{len(gone)} of {pictures} pictures are missing, '{Path(gone[0]).name}' is the first: looked in"
                f" {looked}; say with --pictures where they are"
            )


def load(path: Path) -> Callable[[], Image.Image]:
    """Return what reads a picture when it is asked about."""
    return lambda: load_image(path)


def json_of(path: Path, kind: type[Any]) -> Any:
    """Return what a JSON file says, a list or an object as ``kind`` has it.

    Raises:
        InputError: It can't be read or says something else.
    """
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"'{path}' can't be read ({error})") from error
    if not isinstance(found, kind):
        raise InputError(f"'{path}' holds {type(found).__name__}, expected {'an object' if kind is dict else 'a list'}")
    return found


def json_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the place and the object of every line of a JSON Lines file.

    Raises:
        InputError: It can't be read, or a line is no object.
    """
    for number, line in enumerate(text_of(path).splitlines(), 1):
        if not line.strip():
            continue
        where = f"line {number} of '{path}'"
        try:
            row = parse_json(line)
        except ValueError as error:
            raise InputError(f"{where} isn't JSON ({error})") from error
        if not isinstance(row, dict):
            raise InputError(f"{where} isn't an object")
        yield where, row


def text_of(path: Path) -> str:
    """Return a file's text.

    Raises:
        InputError: It can't be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"'{path}' can't be read as text ({error})") from error


def word(row: object, name: str, where: str) -> str:
    """Return a text of a row.

    Raises:
        InputError: It isn't there or isn't a text.
    """
    found = row.get(name) if isinstance(row, Mapping) else None
    if not isinstance(found, str):
        raise InputError(f"{where} needs '{name}' (a text)")
    return found
