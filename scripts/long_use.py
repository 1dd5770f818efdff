"""Answer thousands of questions in one process and print what memory it takes: flat is right.

python scripts/long_use.py out                    # a bundle; 2,000 answers
python scripts/long_use.py out --answers 20000 --every 2000

Pictures and questions change, and with them the lengths of prompts and answers. Printed are the process's resident
memory in MiB and the objects that Python's collector follows. Exit code 1: behind the first tenth of the answers the
memory grew by more than 2 %.
"""

from __future__ import annotations

import gc
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import psutil
from PIL import Image

import lmmprune

MOST = 0.02
"""Part of the memory after a tenth of the answers by which it may grow until the end."""


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--answers", default=2000, show_default=True, type=click.IntRange(10), help="How many.")
@click.option("--every", default=200, show_default=True, type=click.IntRange(1), help="Print after so many.")
def main(bundle: Path, answers: int, every: int) -> None:
    """Print the memory after every so many answers."""
    click.echo("answers, MiB, objects")
    rows = {}
    for number, bytes_, objects in use(
        lmmprune.load(bundle), answers, {*range(every, answers + 1, every), answers // 10}
    ):
        rows[number] = bytes_
        click.echo(f"{number}, {bytes_ / 2**20:.1f}, {objects}")
    first, last = rows[answers // 10], rows[max(rows)]
    click.echo(f"from {answers // 10} to {max(rows)} answers: {last / first - 1:+.2%}")
    sys.exit(last > first * (1 + MOST))


def use(model: lmmprune.Model, answers: int, marks: set[int]) -> Iterator[tuple[int, int, int]]:
    """Ask, and yield at the marks: how many were answered, resident bytes, objects."""
    draw, process = random.Random(0), psutil.Process()
    for number in range(1, answers + 1):
        side = draw.randrange(40, 400)
        picture = Image.new("RGB", (side, draw.randrange(40, 400)), (side % 256, 90, 200))
        words = " ".join(draw.choices(("what", "colour", "is", "the", "three"), k=draw.randrange(1, 12)))
        for _ in model.answer(picture, words, max_new_tokens=draw.randrange(1, 6)):
            pass
        if number in marks:
            gc.collect()
            yield number, process.memory_info().rss, len(gc.get_objects())


if __name__ == "__main__":
    main()
