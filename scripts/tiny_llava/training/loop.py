"""One optimisation loop for all stages: schedule, progress bar and checkpoints."""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from transformers import AttentionInterface

Metrics = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A training stage.

    Attributes:
        name: also the key in the checkpoint.
        steps: number of optimizer steps.
        learning_rate: peak rate, after the warm-up.
        final: rate at the end of the cosine, as a fraction of the peak.
    """

    name: str
    steps: int
    learning_rate: float
    final: float = 0.02
    warm_up: int = 200

    def scaled(self, factor: float) -> "Stage":
        """Return the stage with its number of steps multiplied by a factor."""
        return replace(self, steps=max(1, round(self.steps * factor)))

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: linear warm-up, then cosine."""
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.learning_rate * min(1.0, (step + 1) / self.warm_up) * (self.final + (1 - self.final) * cosine)


def plain_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float = 1.0,
    **_: object,
) -> tuple[Tensor, None]:
    """Attend with plain matrix products: PyTorch's fused CPU backward is several times slower."""
    del module
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (part.repeat_interleave(groups, 1) for part in (key, value))
    logits = (query * scaling) @ key.transpose(-1, -2)
    if attention_mask is not None:
        logits = logits + attention_mask
    return (logits.softmax(-1).to(value.dtype) @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register("plain", plain_attention)


def _groups(modules: Sequence[nn.Module]) -> list[dict[str, Any]]:
    weights = [weight for module in modules for weight in module.parameters()]
    return [
        {"params": [weight for weight in weights if weight.ndim >= 2], "weight_decay": 0.05},
        {"params": [weight for weight in weights if weight.ndim < 2], "weight_decay": 0.0},
    ]


def run_stage(
    stage: Stage,
    modules: Mapping[str, nn.Module],
    loss_of: Callable[[int], tuple[Tensor, Metrics]],
    checkpoint: Path,
    progress: Progress | None = None,
) -> None:
    """Run a stage to its end, from its checkpoint if there is one.

    Args:
        stage: what to run.
        modules: the modules to optimise and to store, by name.
        loss_of: computes the loss and the numbers to show of a step.
        checkpoint: file written every 300 steps and at the end, replaced atomically.
        progress: an open progress bar; by default a new one.
    """
    optimizer = torch.optim.AdamW(_groups(list(modules.values())), betas=(0.9, 0.98))
    first = 0
    if checkpoint.exists():
        stored = torch.load(checkpoint, weights_only=True)
        for name, module in modules.items():
            module.load_state_dict(stored[name])
        first = stored["step"]
        if first >= stage.steps:
            return
        optimizer.load_state_dict(stored["optimizer"])

    def save(step: int) -> None:
        fresh = checkpoint.with_suffix(".tmp")
        states = {name: module.state_dict() for name, module in modules.items()}
        torch.save({**states, "optimizer": optimizer.state_dict(), "step": step}, fresh)
        os.replace(fresh, checkpoint)

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    started = time.monotonic()
    shown: dict[str, float] = {}
    with progress or Progress(*columns) as bar:
        task = bar.add_task(stage.name, total=stage.steps, completed=first)
        for step in range(first, stage.steps):
            for group in optimizer.param_groups:
                group["lr"] = stage.rate(step)
            loss, metrics = loss_of(step)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # untyped upstream
            for group in optimizer.param_groups:
                nn.utils.clip_grad_norm_(group["params"], 1.0)
            optimizer.step()
            for name, number in metrics.items():
                shown[name] = 0.95 * shown.get(name, number) + 0.05 * number
            if step % 20 == 0:
                text = " ".join(f"{name} {number:.3f}" for name, number in shown.items())
                bar.update(task, completed=step, description=f"{stage.name}: {text}")
            if step % 300 == 299 or step + 1 == stage.steps:
                save(step + 1)
                elapsed = time.monotonic() - started
                bar.console.print(f"{stage.name} step {step + 1} after {elapsed:.0f} s: {shown}")
