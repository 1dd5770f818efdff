"""Write a conversation inside a bundle's template: the pieces of text, and who said each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from lmmprune.compiler.bundle.interface import Prompt
from lmmprune.compiler.bundle.tile_grids import Grid, TileGrids
from lmmprune.compiler.bundle.video import Video
from lmmprune.compiler.runtime.encoded import Clock
from lmmprune.errors import InputError

SLOT = "{prompt}"
ANSWER = "{answer}"
"""Where an answer stands in a further turn."""
PLACE = "<image>"
"""What a question says where a picture stands, whatever the model calls its own token; where prompts have several."""
NUMBER, SECONDS = "{number}", "{seconds}"
"""What a view's text says where its number stands, and when it is."""
STRIPS: Mapping[str, Callable[[str], str]] = {
    "": lambda text: text,
    "both": str.strip,
    "left": str.lstrip,
    "right": str.rstrip,
}
"""What a chat template does to the ends of a question, by the manifest's names."""

Piece = tuple[str, bool]
"""Some text, and whether it was said: else it is the template's."""


def compose(
    template: str, turn: str | Sequence[str], words: Sequence[str], strip: str, answer_strip: str
) -> list[Piece]:
    """Return the pieces of a conversation; every second one was said.

    Args:
        template: Of one question.
        turn: What a further turn puts behind a question; or of each further turn.
        words: A question, its answer, the next question, ...
        strip: Ends of questions that lose their white space.
        answer_strip: Ends of answers.
    """
    before, after = template.split(SLOT)
    pieces = [(before, False), (STRIPS[strip](words[0]), True)]
    turns = [turn] * (len(words) // 2) if isinstance(turn, str) else turn
    for text, answer, question in zip(turns, words[1::2], words[2::2], strict=True):
        to_answer, rest = text.split(ANSWER)
        to_question, behind = rest.split(SLOT)
        pieces += [(to_answer, False), (STRIPS[answer_strip](answer), True)]
        pieces += [(to_question, False), (STRIPS[strip](question), True), (behind, False)]
    return [*pieces, (after, False)]


def place_pictures(
    prompt: Prompt, words: Sequence[str], pictures: int, placed: Sequence[int] | None = None
) -> list[Piece]:
    """Return the pieces of a conversation with so many pictures.

    They stand where its questions say ``<image>``; those of a question that says none stand where the template has its
    own, one after the other.

    Args:
        prompt: Of a bundle whose prompts may have several pictures.
        words: A question, its answer, the next question, ...
        pictures: How many there are, 1 or more.
        placed: How many of them came with each question; None: as many as it marks, or all with the first one.

    Raises:
        InputError: The questions mark more places, or fewer; or the template doesn't say where those of a later
            question stand.
    """
    marks = [question.count(PLACE) for question in words[::2]]
    if placed is None:
        check_marks(sum(marks), pictures)
        placed = marks if any(marks) else [pictures] + [0] * (len(marks) - 1)
    for marked, count in zip(marks, placed, strict=True):
        check_marks(marked, count)
    first = placed[0] and not marks[0]
    template = prompt.template.replace(prompt.unit, prompt.unit * placed[0]) if first else prompt.bare
    turns = [prompt.turn] * (len(marks) - 1)
    for number, (marked, count) in enumerate(zip(marks[1:], placed[1:], strict=True)):
        if count and not marked:
            if not prompt.pictured:
                raise InputError(
                    f"the prompt's template doesn't say where the pictures of a later question stand: write '{PLACE}'"
                    " in it for each"
                )
            turns[number] = prompt.pictured.replace(prompt.unit, prompt.unit * count)
    pieces: list[Piece] = []
    said = 0
    for text, spoken in compose(template, turns, words, prompt.strip, prompt.answer_strip):
        # Of what was said every second text is a question: an answer marks nothing.
        turn, said = said // 2, said + spoken
        if not spoken or said % 2 == 0 or not marks[turn]:
            pieces.append((text, spoken))
            continue
        before, *others = text.split(PLACE)
        pieces.append((before, True))
        for other in others:
            pieces += [(prompt.inline, False), (other, True)]
    return pieces


def check_marks(marked: int, pictures: int) -> None:
    """Refuse another number of ``<image>`` than there are pictures; none at all is right, too.

    Raises:
        InputError: There are that many.
    """
    if marked not in (0, pictures):
        raise InputError(
            f"the prompt has {marked} '{PLACE}' for {_counted(pictures)}: write one for each, or none to have all of"
            " them before the question"
        )


def place_video(prompt: Prompt, video: Video, clock: Clock | None, words: Sequence[str]) -> list[Piece]:
    """Return the pieces of a conversation about a video, whose views stand where the template has its placeholder.

    Args:
        prompt: Of a bundle whose prompts are about a video.
        video: What it says of them.
        clock: When the views are; None: one a second.
        words: A question, its answer, the next question, ...
    """
    text = video.between.join(
        video.view.replace(NUMBER, str(view + 1)).replace(
            SECONDS, f"{view if clock is None else clock.seconds[view]:.1f}"
        )
        for view in range(video.views)
    )
    template = prompt.template.replace(prompt.image_token, text)
    return compose(template, prompt.turn, words, prompt.strip, prompt.answer_strip)


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
