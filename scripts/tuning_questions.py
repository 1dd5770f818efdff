"""Write questions about training scenes: what a default or a bundle is chosen on, so that held-out ones can judge it.

python scripts/tuning_questions.py small-llava -o questions/ --scenes 60
lmmprune study --model models/small_llava --data questions/tuning.jsonl --methods freepruner --no-timing -o STUDY/
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parent / "small_llava"))  # where the package small_llava lies

from small_llava import heldout as small_llava

from lmmprune.models.tiny_llava import dataset as tiny_llava

_INDEX = "tuning.jsonl"


def write_tiny(directory: Path, scenes: int) -> None:
    """Write pictures and one JSON line per question, as ``write_questions`` does for small-llava."""
    directory.mkdir(parents=True)
    lines = []
    for example in tiny_llava.tuning(scenes):
        name = f"scene_{example.image_id:03d}.png"
        example.image.save(directory / name)
        row = {"image": name, "prompt": example.question, "answer": example.answer, "kind": example.kind}
        lines.append(json.dumps(row))
    (directory / _INDEX).write_text("\n".join(lines) + "\n", encoding="utf-8")


@click.command()
@click.argument("model", type=click.Choice(["tiny-llava", "small-llava"]))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="A folder that isn't there yet.")
@click.option("--scenes", type=click.IntRange(min=1), default=60, show_default=True, help="Eight questions each.")
def main(model: str, output: Path, scenes: int) -> None:
    """Write OUTPUT/tuning.jsonl and its pictures."""
    if output.exists():
        raise click.ClickException(f"'{output}' is there: give a new folder")
    if model == "tiny-llava":
        write_tiny(output, scenes)
    else:
        small_llava.write_questions(output, _INDEX, small_llava.tuning(scenes))


if __name__ == "__main__":
    main()
