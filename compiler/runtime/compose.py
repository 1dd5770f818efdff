"""Write a conversation inside a bundle's template: the pieces of text, and who said each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from lmmprune.compiler.bundle.interface import Prompt
from lmmprune.compiler.bundle.tile_grids import Grid, TileGrids
from lmmprune.errors import InputError

SLOT = "{prompt}"
ANSWER = "{answer}"
"""Where an answer stands in a further turn."""
PLACE = "<image>"
"""What a question says where a picture stands, whatever the model calls its own token; where prompts have several."""
STRIPS: Mapping[str, Callable[[str], str]] = {
    "": lambda text: text,
    "both": str.strip,
    "left": str.lstrip,
    "right": str.rstrip,
}
"""What a chat template does to the ends of a question, by the manifest's names."""

Piece = tuple[str, bool]
"""Some text, and whether it was said: else it is the template's."""


def compose(template: str, turn: str, words: Sequence[str], strip: str, answer_strip: str) -> list[Piece]:
    """Return the pieces of a conversation; every second one was said.

    Args:
        template: Of one question.
        turn: What a further turn puts behind a question.
        words: A question, its answer, the next question, ...
        strip: Ends of questions that lose their white space.
        answer_strip: Ends of answers.
    """
    before, after = template.split(SLOT)
    pieces = [(before, False), (STRIPS[strip](words[0]), True)]
    if len(words) > 1:
        to_answer, rest = turn.split(ANSWER)
        to_question, behind = rest.split(SLOT)
        for answer, question in zip(words[1::2], words[2::2], strict=True):
            pieces += [(to_answer, False), (STRIPS[answer_strip](answer), True)]
            pieces += [(to_question, False), (STRIPS[strip](question), True), (behind, False)]
    return [*pieces, (after, False)]


def place_pictures(prompt: Prompt, words: Sequence[str], pictures: int) -> list[Piece]:
    """Return the pieces of a conversation with so many pictures.

    They stand where its questions say ``<image>``, or all where the template has its own, one after the other.

    Args:
        prompt: Of a bundle whose prompts may have several pictures.
        words: A question, its answer, the next question, ...
        pictures: How many there are, 1 or more.

    Raises:
        InputError: The questions mark more places, or fewer.
    """
    marked = sum(question.count(PLACE) for question in words[::2])
    if marked not in (0, pictures):
        raise InputError(
            f"the prompt has {marked} '{PLACE}' for {_counted(pictures)}: write one for each, or none to have all of"
            " them before the question"
        )
    template = prompt.bare if marked else prompt.template.replace(prompt.unit, prompt.unit * pictures)
    pieces = compose(template, prompt.turn, words, prompt.strip, prompt.answer_strip)
    if not marked:
        return pieces
    placed: list[Piece] = []
    questions = 0
    for text, said in pieces:
        # Of what was said every second text is a question: an answer marks nothing.
        if not said or (questions := questions + 1) % 2 == 0:
            placed.append((text, said))
            continue
        first, *others = text.split(PLACE)
        placed.append((first, True))
        for other in others:
            placed += [(prompt.inline, False), (other, True)]
    return placed


def write_tiles(pieces: Sequence[Piece], tiles: TileGrids, grids: Sequence[Grid]) -> list[Piece]:
    """Return the pieces with the text of its grid for each picture, in their order; what was said stays."""
    left = iter(grids)
    written: list[Piece] = []
    for text, said in pieces:
        if said:
            written.append((text, said))
            continue
        first, *others = text.split(tiles.picture)
        written.append((first + "".join(tiles.text(next(left)) + other for other in others), False))
    return written


def _counted(pictures: int) -> str:
    return "1 picture" if pictures == 1 else f"{pictures} pictures"
