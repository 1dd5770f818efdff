"""One optimisation loop for all stages: Muon for the matrices of the layers, AdamW for the rest."""

import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from training.loop import Metrics, Stage

SAVE_SECONDS = 150.0
SHOW_STEPS = 50


def make_optimizers(modules: Mapping[str, nn.Module]) -> list[torch.optim.Optimizer]:
    """Create the optimizers: matrices inside of layers learn by orthogonal steps (Muon).

    Reference: K. Jordan et al., 2024, Muon; the scale of a step is that of AdamW (J. Liu et al.,
    2025, Muon is Scalable for LLM Training, arXiv 2502.16982).
    """
    named = [pair for module in modules.values() for pair in module.named_parameters()]
    named = [(name, weight) for name, weight in named if weight.requires_grad]
    hidden = [weight for name, weight in named if weight.ndim == 2 and ".layers." in f".{name}"]
    known = {id(weight) for weight in hidden}
    rest = [weight for _, weight in named if id(weight) not in known]
    groups = [
        {"params": [weight for weight in rest if weight.ndim >= 2], "weight_decay": 0.02},
        {"params": [weight for weight in rest if weight.ndim < 2], "weight_decay": 0.0},
    ]
    return [
        torch.optim.Muon(hidden, lr=1e-3, weight_decay=0.02, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True),
    ]


class Log:
    """Lines of text, on the screen and at the end of a file."""

    def __init__(self, path: Path) -> None:
        """Append to a file."""
        self.path = path

    def __call__(self, line: str) -> None:
        """Write one line."""
        print(line, flush=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def _text(metrics: Mapping[str, float]) -> str:
    return " ".join(f"{name} {number:.3f}" for name, number in metrics.items())


def run_stage(
    stage: Stage,
    modules: Mapping[str, nn.Module],
    loss_of: Callable[[int], tuple[Tensor, Metrics]],
    checkpoint: Path,
    log: Log,
    check: Callable[[], Metrics] | None = None,
    check_steps: int = 300,
    deadline: float = math.inf,
) -> bool:
    """Run a stage, from its checkpoint if there is one; say whether it came to its end.

    Args:
        stage: what to run.
        modules: the modules to optimise and to store, by name.
        loss_of: computes the loss and the numbers to show of a step.
        checkpoint: file written every SAVE_SECONDS and at the end, replaced atomically.
        log: takes the progress.
        check: measures on scenes that aren't trained.
        check_steps: how often to do so.
        deadline: when to stop, by the monotonic clock.
    """
    optimizers = make_optimizers(modules)
    first, before = 0, 0.0
    if checkpoint.exists():
        stored: dict[str, Any] = torch.load(checkpoint, weights_only=True)
        for name, module in modules.items():
            module.load_state_dict(stored[name])
        first, before = stored["step"], stored["seconds"]
        if first >= stage.steps:
            return True
        for optimizer, state in zip(optimizers, stored["optimizers"], strict=True):
            optimizer.load_state_dict(state)
    started = saved = time.monotonic()
    processor = time.process_time()

    def save(step: int) -> None:
        fresh = checkpoint.with_suffix(".tmp")
        states = {name: module.state_dict() for name, module in modules.items()}
        kept = [optimizer.state_dict() for optimizer in optimizers]
        seconds = before + time.process_time() - processor
        torch.save({**states, "optimizers": kept, "step": step, "seconds": seconds}, fresh)
        os.replace(fresh, checkpoint)

    shown: dict[str, float] = {}
    for step in range(first, stage.steps):
        rate = stage.rate(step)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        loss, metrics = loss_of(step)
        loss.backward()  # type: ignore[no-untyped-call]  # untyped upstream
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                nn.utils.clip_grad_norm_(group["params"], 1.0)
            optimizer.step()
            optimizer.zero_grad()
        for name, number in metrics.items():
            shown[name] = 0.95 * shown.get(name, number) + 0.05 * number
        done = step + 1
        now = time.monotonic()
        if done % SHOW_STEPS == 0:
            log(
                f"{stage.name} {done}/{stage.steps} {before + time.process_time() - processor:.0f} s of CPU: {_text(shown)}"
            )
        if check and (done % check_steps == 0 or done == stage.steps):
            log(f"{stage.name} {done} held back: {_text(check())}")
        if now - saved > SAVE_SECONDS or done == stage.steps or now > deadline:
            save(done)
            saved = now
        if now > deadline:
            return done == stage.steps
    return True
