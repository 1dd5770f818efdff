"""Train the tiny LLaVA from nothing: about an hour on 2 CPU cores, minutes on a GPU.

Stages: (1) the vision tower reads digits in small windows of scenes, (2) in whole scenes,
(3) the projector and the decoder learn to answer on the frozen tower, (4) they go on with
pictures of several sizes. No stage drops visual tokens behind the tower: the pruning methods are
training-free and the model does not know them.

Usage: PYTHONPATH=src python scripts/tiny_llava/train_tiny_llava.py --work-dir /tmp/tiny-llava --resume
"""

import shutil
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from training.architecture import WIDTH, build_model, build_tokenizer
from training.language import language_step
from training.loop import Stage, run_stage
from training.packing import Decoder
from training.pools import make_pool
from training.pruning_table import SELECTORS, hits, look, per_kind
from training.publish import publish
from training.vision import Heads, WindowTower, vision_step
from transformers import LlavaForConditionalGeneration

from lmmprune.models.tiny_llava.scenes import GRID

RATIOS = (0.5, 0.75, 0.9)
console = Console()

SCENES = 40_000
WINDOWS = Stage(name="windows", steps=1800, learning_rate=1.5e-3, final=0.3)
WHOLE = Stage(name="scenes", steps=2700, learning_rate=1.2e-3)
LANGUAGE = Stage(name="language", steps=1800, learning_rate=1.5e-3, final=0.7)
SIZES = Stage(name="sizes", steps=1900, learning_rate=1.3e-3)


def train(work: Path, *, scale: float, seed: int, compiled: bool) -> LlavaForConditionalGeneration:
    """Run the four stages, each from its checkpoint in `work` if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pool = make_pool(max(500, round(SCENES * min(scale, 1.0))), seed=seed + 100)
    model = build_model(seed)
    torch.nn.Module.to(model, device)  # transformers' own `to` is wrapped without types
    model.set_attn_implementation("plain")
    tower, heads = WindowTower(model.model.vision_tower), Heads(WIDTH).to(device)
    decoder = Decoder(model)

    def fast(module: torch.nn.Module) -> Any:
        return torch.compile(module, dynamic=False) if compiled else module

    read = fast(tower)
    modules = {"tower": tower, "heads": heads}
    for stage, batch, side in ((WINDOWS, 256, 4), (WHOLE, 64, GRID)):
        step = vision_step(read, heads, pool, batch=batch, side=side, seed=seed + side)
        run_stage(stage.scaled(scale), modules, step, work / f"{stage.name}.pt")
    unseen = make_pool(500, seed=seed + 999, split="heldout")
    with torch.no_grad():
        seen = vision_step(tower, heads, unseen, batch=256, side=GRID, seed=seed)(0)[1]
    console.print("tower on held-out scenes:", {name: round(part, 3) for name, part in seen.items()})
    answering = fast(decoder)
    for stage, several_sizes in ((LANGUAGE, False), (SIZES, True)):
        step = language_step(
            tower,
            answering,
            pool,
            build_tokenizer().get_vocab(),
            pictures=32,
            several_sizes=several_sizes,
            seed=seed + 1,
            device=device,
        )
        run_stage(stage.scaled(scale), {"decoder": decoder}, step, work / f"{stage.name}.pt")
    torch.nn.Module.cpu(model)
    return model


def report(directory: Path) -> None:
    """Print the held-out accuracy of the directory per kind of question and per pruning."""
    model, pictures = look(directory)
    vocabulary = build_tokenizer().get_vocab()
    whole = hits(model, pictures, vocabulary)
    kinds = per_kind(pictures, whole)
    console.print("unpruned:", f"{whole.float().mean():.2%}", {k: f"{v:.1%}" for k, v in kinds.items()})
    table = Table("selection", *(f"{ratio:.0%} removed" for ratio in RATIOS))
    for original in (False, True):
        for selector in SELECTORS:
            cells = [
                hits(
                    model,
                    pictures,
                    vocabulary,
                    selector=selector,
                    ratio=ratio,
                    original_positions=original,
                )
                for ratio in RATIOS
            ]
            name = f"{selector}, {'original' if original else 'contiguous'} positions"
            table.add_row(name, *(f"{cell.float().mean():.2%}" for cell in cells))
    console.print(table)


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=Path("models/tiny_llava"))
@click.option("--work-dir", type=click.Path(path_type=Path), required=True, help="Checkpoints.")
@click.option("--resume", is_flag=True, help="Continue from the checkpoints in the work dir.")
@click.option("--scale", type=float, default=1.0, help="Factor on the steps of every stage.")
@click.option("--seed", type=int, default=0)
@click.option("--compile/--no-compile", "compiled", default=True, help="Use torch.compile.")
@click.option("--report-only", is_flag=True, help="Only measure the output directory.")
def main(
    output: Path,
    work_dir: Path,
    resume: bool,
    scale: float,
    seed: int,
    compiled: bool,
    report_only: bool,
) -> None:
    """Train, publish and measure the tiny LLaVA."""
    if not report_only:
        if work_dir.exists() and not resume:
            shutil.rmtree(work_dir)
        work_dir.mkdir(parents=True, exist_ok=True)
        publish(train(work_dir, scale=scale, seed=seed, compiled=compiled), output)
    report(output)


if __name__ == "__main__":
    main()
