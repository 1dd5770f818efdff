"""Time to the first token of a second question about a picture: what was read kept, and everything read again.

    python scripts/llava7b/second_question.py --work /tmp/work -o docs/results/second_question

Synthetic weights at LLaVA-7B's widths and few layers: times depend on shapes, not on values. A question, an answer and
the next question are put to a bundle that holds the first prompt, and to the same bundle without; both by turns, in an
order drawn for each round, on the same sessions. Timed is the prefill, the picture's features being there in both; the
last column adds the vision graph to the whole run. One bundle is loaded at a time.
"""

from __future__ import annotations

import random
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

import click
from PIL import Image

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.export.export import export
from lmmprune.compiler.export.request import Request
from lmmprune.compiler.export.values import Int8, Ratio
from lmmprune.compiler.measure.report import Spread, paired_speedup
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.models.registry import tiny_llava_dir

sys.path.insert(0, str(Path(__file__).parents[1]))  # scripts/, where results.py lies

import results

FIRST = "What is shown in this picture, and what is the person on the left about to do with it?"
SAID = "A table with a cup on it. The person on the left reaches for the cup."
SECOND = "Which colour is the cup, and is anything in it?"
VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float32, vision output 0.5": {"ratio": 0.5},
    "int8": {"int8": True},
    "int8, vision output 0.5": {"ratio": 0.5, "int8": True},
    "int8, fastv 0.33": {"ratio": 0.33, "int8": True, "method": "fastv"},
    "int8, fixed cache": {"int8": True, "static_cache": 1024},
}


def bundle_of(folder: Path, name: str, model: str, layers: int | None) -> Bundle:
    """Export a variant unless it is there."""
    options = dict(VARIANTS[name])
    path = folder / name.replace(" ", "_").replace(",", "")
    if not path.is_dir():
        click.echo(f"export {name}", err=True)
        ratio, int8 = options.pop("ratio", 0.0), options.pop("int8", False)
        export(
            Request(
                model=model,
                output=path,
                tokens=Ratio(ratio),
                int8=Int8() if int8 else None,
                weights="auto" if layers is None else "dummy",
                layers=layers,
                calibration_samples=2,
                template=str(tiny_llava_dir() / "chat_template.jinja"),  # in LLaVA's form, for several turns
                **options,
            )
        )
    return Bundle.open(path)


def measure(bundle: Bundle, rounds: int, threads: int) -> dict[str, Any]:
    """Time both ways on one bundle; milliseconds."""
    runtime = Runtime(bundle, threads=threads)
    picture = Image.effect_noise((336, 336), 90).convert("RGB")
    seen = runtime.encode_image(picture)
    vision, kept, anew, read = [], [], [], []
    held, order = runtime.hold(), random.Random(0)
    for number in range(-1, rounds):  # the first one warms up
        _ = runtime.answer(seen, FIRST, 1, held=held).text
        for way in order.sample(("kept", "anew"), 2):
            answer = runtime.answer(seen, [FIRST, SAID, SECOND], 1, held=held if way == "kept" else None)
            took = answer.stats.prefill_ms
            if number >= 0:
                (kept if way == "kept" else anew).append(took)
            if way == "kept":
                read.append(answer.stats.prompt_tokens - answer.stats.reused_tokens)
        if number >= 0:
            vision.append(runtime.encode_image(picture).vision_ms)
    runtime.close()
    return {
        "prompt_tokens": answer.stats.prompt_tokens,
        "read_tokens": max(read),
        "kept_ms": kept,
        "anew_ms": anew,
        "vision_ms": vision,
        "ratio": paired_speedup(kept, anew),
        "ratio_with_vision": paired_speedup(kept, [a + b for a, b in zip(anew, vision, strict=True)]),
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return the rows in Markdown."""
    lines = [
        "| bundle | prompt | read | kept ms | anew ms | ratio | quartiles | vision ms | ratio with vision |",
        "|---|--:|--:|--:|--:|--:|---|--:|--:|",
    ]
    for name, row in found.items():
        kept, anew, vision = (statistics.median(row[part]) for part in ("kept_ms", "anew_ms", "vision_ms"))
        ratio, whole = row["ratio"], row["ratio_with_vision"]
        lines.append(
            f"| {name} | {row['prompt_tokens']} | {row['read_tokens']} | {kept:.1f} | {anew:.1f} |"
            f" {ratio.median:.3f} | {ratio.q1:.3f}-{ratio.q3:.3f} | {vision:.1f} | {whole.median:.3f} |"
        )
    return "\n".join(lines)


@click.command()
@click.option("--model", default="llava-1.5-7b", show_default=True)
@click.option("--layers", default=3, show_default=True, help="0: the model as it is, with its weights.")
@click.option("--variant", "names", multiple=True, type=click.Choice(list(VARIANTS)), default=list(VARIANTS))
@click.option("--rounds", default=10, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--keep/--no-keep", default=False, help="Keep the bundles, 15 GB.")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for the bundles.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("docs/results/second_question"), show_default=True
)
def main(
    model: str,
    layers: int,
    names: tuple[str, ...],
    rounds: int,
    threads: int,
    keep: bool,
    work: Path,
    output: Path,
) -> None:
    """Write OUTPUT.json and OUTPUT.md."""
    work.mkdir(parents=True, exist_ok=True)
    found = {}
    for name in names:
        bundle = bundle_of(work, name, model, layers or None)
        found[name] = measure(bundle, rounds, threads)
        if not keep:
            shutil.rmtree(bundle.path)
    facts = f"{layers or 'all'} decoder layers, {threads} threads, {rounds} rounds; ratios are taken within a round."
    text = f"{table(found)}\n\n{facts}\n"
    plain = {
        name: {part: vars(value) if isinstance(value, Spread) else value for part, value in row.items()}
        for name, row in found.items()
    }
    results.write(output, {"layers": layers, "rounds": rounds, "threads": threads, "variants": plain}, text)
    click.echo(text)


if __name__ == "__main__":
    main()
