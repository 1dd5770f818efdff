"""The main job on the small model, from export to the comparison table and the pictures (``make demo``)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from lmmprune.compiler.cli import app
from lmmprune.models.registry import tiny_llava_dir

VARIANTS = {
    "baseline": [],
    "pruned": ["--ratio", "0.5"],
    "int8": ["--int8"],
    "pruned-int8": ["--ratio", "0.5", "--int8"],
}


def call(*arguments: str) -> None:
    """Print a command line as a user would type it, and run it."""
    words = [f"'{word}'" if " " in word else word for word in arguments]
    click.secho(f"\n$ lmmprune {' '.join(words)}", fg="cyan", bold=True)
    app.main(args=list(arguments), standalone_mode=False)


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=Path("demo"), show_default=True)
@click.option("--rounds", default=20, show_default=True, help="Rounds of the benchmark.")
def main(output: Path, rounds: int) -> None:
    """Export four variants of tiny-llava, ask a question, compare them, build an engine."""
    output.mkdir(parents=True, exist_ok=True)
    examples = Path(os.path.relpath(tiny_llava_dir().resolve())) / "examples"
    rows = [json.loads(line) for line in (examples / "examples.jsonl").read_text(encoding="utf-8").splitlines()]
    example = next(row for row in rows if row["kind"] == "side")
    image, prompt = str(examples / example["image"]), example["prompt"]
    bundles = []
    for name, options in VARIANTS.items():
        bundles.append(str(output / name))
        call("export", "--model", "tiny-llava", *options, "-o", bundles[-1], "--force")
    for bundle in (bundles[0], bundles[-1]):
        call("run", bundle, "--image", image, "--prompt", prompt, "--stats")
    click.echo(f"(the right answer is '{example['answer']}')")
    call("show", bundles[1], "--image", image, "-o", str(output / "kept.png"), "--force")
    call("verify", bundles[1])
    chart = str(output / "bench.png")
    call("bench", *bundles, "--image", image, "--prompt", prompt, "--rounds", str(rounds), "--chart", chart, "--force")
    rtx = str(output / "pruned-rtx")
    call("export", "--model", "tiny-llava", "--ratio", "0.5", "--target", "tensorrt-rtx", "-o", rtx, "--force")
    call("build", rtx, "--target", "tensorrt-rtx", "--arch", "sm89")


if __name__ == "__main__":
    main()
