"""Train the small LLaVA from nothing, in pieces that resume.

Stages: (1) a shallow tower reads small windows of scenes, (2) the deep tower grown from it reads
whole scenes and matches captions, (3) projector and decoder learn to answer on the frozen tower.
No stage drops visual tokens: the pruning methods are training-free and the model does not know them.

Usage: PYTHONPATH=src:scripts/tiny_llava python scripts/small_llava/train_small_llava.py --work-dir W --resume
"""

from pathlib import Path
from typing import Any

import click
import torch
from small_llava.loop import Log, run_stage
from small_llava.pools import open_pool
from small_llava.scenes import GRID
from small_llava.tower import GROWTH, SHALLOW, WIDTH, build_tower, grow
from small_llava.vision import Heads, vision_step
from training.loop import Stage
from training.vision import WindowTower

SCENES = 48_000
WINDOWS = Stage(name="windows", steps=1500, learning_rate=2e-3, final=0.3, warm_up=60)
WHOLE = Stage(name="scenes", steps=1500, learning_rate=1.5e-3, final=0.02, warm_up=60)


def train(work: Path, *, scale: float, seed: int, compiled: bool) -> None:
    """Run the stages, each from its checkpoint in `work` if there is one."""
    pools = work / "pools"
    pool = open_pool(pools, max(500, round(SCENES * min(scale, 1.0))), seed=1_001 + seed)
    unseen = open_pool(pools, 1500, seed=900_001 + seed, split="heldout")
    log = Log(work / "log.txt")

    def fast(module: torch.nn.Module) -> Any:
        return torch.compile(module, dynamic=False) if compiled else module

    heads = Heads(WIDTH)
    tower = WindowTower(build_tower(SHALLOW, seed))
    for stage, batch, side in ((WINDOWS, 128, 7), (WHOLE, 32, GRID)):
        if side == GRID:
            encoder = tower.tower.encoder
            encoder.layers = grow(encoder.layers, GROWTH, ("self_attn.out_proj", "mlp.fc2"))
        read = fast(tower)
        step = vision_step(read, heads, pool, batch=batch, side=side, seed=seed + side, captions=side == GRID)

        def check(side: int = side, batch: int = batch, read: Any = read) -> dict[str, float]:
            look = vision_step(read, heads, unseen, batch=batch, side=side, seed=seed, captions=side == GRID)
            with torch.no_grad():
                parts = [look(index)[1] for index in range(512 // batch)]
            return {name: sum(part.get(name, 0.0) for part in parts) / len(parts) for name in parts[0]}

        run_stage(stage.scaled(scale), {"tower": tower, "heads": heads}, step, work / f"{stage.name}.pt", log, check)


@click.command()
@click.option("--work-dir", type=click.Path(path_type=Path), required=True, help="Checkpoints.")
@click.option("--scale", type=float, default=1.0, help="Factor on the steps of every stage.")
@click.option("--seed", type=int, default=0)
@click.option("--compile/--no-compile", "compiled", default=True, help="Use torch.compile.")
def main(work_dir: Path, scale: float, seed: int, compiled: bool) -> None:
    """Train, publish and measure the small LLaVA."""
    work_dir.mkdir(parents=True, exist_ok=True)
    train(work_dir, scale=scale, seed=seed, compiled=compiled)


if __name__ == "__main__":
    main()
