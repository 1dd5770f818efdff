"""Train the small LLaVA in pieces that resume: about five hours of one CPU core.

Stages: (1) a shallow tower reads small windows of scenes, (2) the deep tower grown from it reads
whole scenes and matches captions, (3) on the frozen tower, projector and a shallow decoder learn to
look up and read, in small windows and then in whole scenes, (4) so does the deep decoder grown from
it, on pictures of both sizes. No stage drops visual tokens: the pruning
methods are training-free and the model does not know them.

Usage, from nothing, and again until it is done:
  PYTHONPATH=src:scripts/tiny_llava python scripts/small_llava/train_small_llava.py --work-dir W --minutes 60
On another machine, from the published weights:
  ... --work-dir W --from models/small_llava --minutes 60
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from small_llava import text, tower
from small_llava.heldout import calibration, heldout, write_questions
from small_llava.language import language_step, stored_features
from small_llava.loop import Log, run_stage
from small_llava.model import build_model, centre_projector, deepen, load_directory, save_directory
from small_llava.pools import Pool, open_pool
from small_llava.pruning_table import look, score
from small_llava.scenes import GRID
from small_llava.vision import Heads, vision_step
from training.loop import Metrics, Stage
from training.packing import Decoder
from training.vision import WindowTower
from transformers import CLIPVisionModel, LlavaForConditionalGeneration

SCENES, ANSWERED, UNSEEN = 48_000, 24_000, 1_500
"""Training scenes; those of them that are asked about; scenes held back to measure on."""

WINDOWS = Stage(name="windows", steps=2500, learning_rate=2e-3, final=0.3, warm_up=60)
WHOLE = Stage(name="scenes", steps=1500, learning_rate=1.5e-3, warm_up=60)
GLANCE = Stage(name="glance", steps=1400, learning_rate=2e-3, final=0.68, warm_up=60)
FIND = Stage(name="find", steps=2300, learning_rate=1.6e-3, final=0.1, warm_up=60)
ANSWER = Stage(name="answer", steps=4000, learning_rate=1.2e-3, warm_up=100)
RATIOS = (0.5, 0.75, 0.9)

Step = Callable[[int], tuple[torch.Tensor, Metrics]]


def averaged(step: Step, steps: int) -> Callable[[], Metrics]:
    """Return a measurement: the mean of the metrics of some steps, without gradients."""

    def check() -> Metrics:
        with torch.no_grad():
            parts = [step(index)[1] for index in range(steps)]
        names = {name: None for part in parts for name in part}
        return {
            name: sum(part[name] for part in parts if name in part) / sum(name in part for part in parts)
            for name in names
        }

    return check


def alternate(often: Step, seldom: Step) -> Step:
    """Take every third step from the second of two kinds; its numbers are shown as those of small pictures."""

    def step(index: int) -> tuple[torch.Tensor, Metrics]:
        if index % 3 != 2:
            return often(index)
        loss, metrics = seldom(index)
        return loss, {"small": metrics["right"]}

    return step


class Training:
    """One run: its pools, its log and its deadline."""

    def __init__(self, work: Path, *, scale: float, seed: int, compiled: bool, minutes: float) -> None:
        """Open or render the pools in `work`."""
        self.work, self.scale, self.seed, self.compiled = work, scale, seed, compiled
        self.deadline = time.monotonic() + 60 * minutes
        self.log = Log(work / "log.txt")
        self.pool = self._pool(SCENES, 1_001, "train")
        self.unseen = self._pool(UNSEEN, 900_001, "heldout")

    def _pool(self, count: int, first_seed: int, split: Any) -> Pool:
        count = max(500, round(count * min(self.scale, 1.0)))
        return open_pool(self.work / "pools", count, seed=first_seed + self.seed, split=split)

    def fast(self, module: torch.nn.Module) -> Any:
        """Compile a module if asked to."""
        return torch.compile(module, dynamic=False) if self.compiled else module

    def run(self, stage: Stage, modules: dict[str, torch.nn.Module], step: Step, check: Callable[[], Metrics]) -> bool:
        """Run a stage until its end or the deadline."""
        path = self.work / f"{stage.name}.pt"
        return run_stage(stage.scaled(self.scale), modules, step, path, self.log, check, deadline=self.deadline)

    def tower(self) -> CLIPVisionModel | None:
        """Train the tower; None if the time is up before it is done."""
        heads = Heads(tower.WIDTH)
        wrapped = WindowTower(tower.build_tower(tower.SHALLOW, self.seed))
        for stage, batch, side in ((WINDOWS, 128, 7), (WHOLE, 32, GRID)):
            whole = side == GRID
            if whole:
                encoder = wrapped.tower.encoder
                encoder.layers = tower.grow(encoder.layers, tower.GROWTH, ("self_attn.out_proj", "mlp.fc2"))
                wrapped.tower.config.num_hidden_layers = tower.DEEP
            read = self.fast(wrapped)
            options: dict[str, Any] = {"batch": batch, "side": side, "captions": whole}
            step = vision_step(read, heads, self.pool, seed=self.seed + side, **options)
            check = averaged(vision_step(read, heads, self.unseen, seed=self.seed, **options), 512 // batch)
            if not self.run(stage, {"tower": wrapped, "heads": heads}, step, check):
                return None
        return wrapped.tower

    def features(self, model: LlavaForConditionalGeneration) -> list[NDArray[np.float16]]:
        """Return the features of the scenes that are asked about and of scenes held back."""
        read = self.fast(WindowTower(model.model.vision_tower))
        return [
            stored_features(read, pool, min(count, len(pool)), self.work / f"features-{name}.npy")
            for name, pool, count in (("train", self.pool, ANSWERED), ("unseen", self.unseen, 500))
        ]

    def decoder(self, model: LlavaForConditionalGeneration, stage: Stage) -> bool:
        """Train projector and decoder on the frozen tower."""
        trained, unseen = self.features(model)
        decoder = Decoder(model)
        fast, read = self.fast(decoder), self.fast(WindowTower(model.model.vision_tower))
        small: dict[str, Any] = {"pictures": 32, "side": 6, "tower": read}
        whole: dict[str, Any] = {"pictures": 16}
        options = small if stage is GLANCE else whole
        step = language_step(fast, self.pool, trained, seed=self.seed + 1, captions=1, **options)
        look = language_step(fast, self.unseen, unseen, seed=self.seed, captions=0, detailed=True, **options)
        if stage is ANSWER:
            # Several sizes: from scenes alone the decoder counts by the share of ink among all tokens.
            step = alternate(step, language_step(fast, self.pool, trained, seed=self.seed + 2, captions=0, **small))
        return self.run(stage, {"decoder": decoder}, step, averaged(look, 16))

    def model(self, start: Path | None) -> LlavaForConditionalGeneration | None:
        """Run what is left to do, from published weights if given; None if there is no decoder yet."""
        if start is None:
            trained = self.tower()
            if trained is None:
                return None
            model = build_model(trained, text.SHALLOW, self.seed)
            centre_projector(model, self.features(model)[0][:200])
            done = self.decoder(model, GLANCE) and self.decoder(model, FIND)
            model = deepen(model)
            if not done:
                return model
        else:
            model = load_directory(start)
        self.decoder(model, ANSWER)
        return model


def report(directory: Path, console: Console) -> None:
    """Print the held-out accuracy of a directory, unpruned per kind and pruned."""
    model, pictures = look(directory)
    whole = score(model, pictures)
    console.print(f"unpruned: {whole.whole:.2%}, first token {whole.first:.2%}")
    console.print("per kind:", {kind: f"{right:.1%}" for kind, right in whole.kinds.items()})
    table = Table("selection, original positions", *(f"{ratio:.0%} removed" for ratio in RATIOS))
    for selector in ("random", "uniform", "cls", "received"):
        scores = [score(model, pictures, selector=selector, ratio=ratio) for ratio in RATIOS]
        table.add_row(selector, *(f"{cell.whole:.2%} (first {cell.first:.2%})" for cell in scores))
    console.print(table)


def publish(model: LlavaForConditionalGeneration, directory: Path) -> None:
    """Write the Hugging Face files, the held-out questions and the scenes for calibration."""
    save_directory(model, directory)
    write_questions(directory / "heldout", "heldout.jsonl", heldout())
    write_questions(directory / "calib", "calib.jsonl", calibration())


@click.command()
@click.option(
    "--work-dir", type=click.Path(path_type=Path), required=True, help="Checkpoints; a run goes on from them."
)
@click.option("--from", "start", type=click.Path(path_type=Path, exists=True), help="Train on from published weights.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("models/small_llava"))
@click.option("--minutes", type=float, default=math.inf, help="Stop after this time; run again to go on.")
@click.option("--scale", type=float, default=1.0, help="Factor on the steps of every stage.")
@click.option("--seed", type=int, default=0)
@click.option("--compile/--no-compile", "compiled", default=True, help="Use torch.compile.")
@click.option("--report-only", is_flag=True, help="Only measure the output directory.")
def main(
    work_dir: Path,
    start: Path | None,
    output: Path,
    minutes: float,
    scale: float,
    seed: int,
    compiled: bool,
    report_only: bool,
) -> None:
    """Train, publish and measure the small LLaVA."""
    if not report_only:
        work_dir.mkdir(parents=True, exist_ok=True)
        training = Training(work_dir, scale=scale, seed=seed, compiled=compiled, minutes=minutes)
        model = training.model(start)
        if model is None:
            raise click.ClickException("the tower isn't trained yet: run the same command again")
        publish(model, output)
    report(output, Console())


if __name__ == "__main__":
    main()
