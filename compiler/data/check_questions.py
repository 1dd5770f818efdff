"""What a bundle can't be asked is refused before it answers anything, by the line that it stands in."""

from __future__ import annotations

from collections.abc import Sequence

from lmmprune.compiler.bundle.interface import Interface
from lmmprune.compiler.bundle.video import NO_VIDEO
from lmmprune.compiler.data.questions import Question
from lmmprune.compiler.runtime.compose import PLACE, check_marks
from lmmprune.compiler.runtime.prompt import check_pictures
from lmmprune.errors import InputError, naming


def check_questions(interface: Interface, questions: Sequence[Question]) -> None:
    """Refuse too many pictures, other places than there are pictures, and a video where pictures are asked about.

    Args:
        interface: The bundle's.
        questions: All that will be asked.

    Raises:
        InputError: There is one; the message begins with its line.
    """
    for question in questions:
        with naming(question.where):
            if question.video is not None:
                if interface.video is None:
                    raise InputError(NO_VIDEO)
                continue
            pictures = 1 + len(question.more)
            check_pictures(interface, pictures)
            if interface.images > 1:
                check_marks(question.prompt.count(PLACE), pictures)
