"""Bundles of every shape that are damaged, and the commands that read them."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

TARGET, BOARD = "tensorrt-10.3", "jetson-orin-jp6"


def whole(home: Path, **changes: Any) -> list[Path]:
    """Return bundles that nobody damaged: two graphs; the same for a board; one that chooses by the question; buckets.

    The first takes the least time, and stands for most tries; ``changes`` are its manifest's.
    """
    import exports
    import runtime_fixtures as fx

    return [
        fx.make_bundle(home / "whole", keep=4, **changes).path,
        fx.make_bundle(home / "board", keep=4, dtype="float16", target=TARGET).path,
        exports.exported_again(ratio=0.5, method="cdpruner")[0],
        exports.exported_again(method="inflection", buckets=(0.5, 0.75))[0],
    ]


def copied(bundles: list[Path], rng: random.Random, bundle: Path) -> int:
    """Lay a copy of one of them at a place, and say which."""
    number = 0 if rng.random() < 0.6 else rng.randrange(len(bundles))
    shutil.rmtree(bundle, ignore_errors=True)
    shutil.copytree(bundles[number], bundle)
    return number


def reading(rng: random.Random, bundle: Path, picture: Path, number: int) -> list[Any]:
    """Return a command that reads a bundle, of those that the copied one is for."""
    asked, beside = ["--image", picture, "--prompt", "hi"], bundle.parent
    commands: list[list[Any]] = [["flops", bundle], ["inspect", bundle], ["card", bundle]]
    if number == 1:
        commands += [
            ["build", bundle, "--target", TARGET, "--plan-only", "-o", beside / "plan", "--force"],
            ["deploy", bundle, "--for", BOARD, "-o", beside / "deployed", "--force"],
        ]
    else:
        commands += [
            ["run", bundle, *asked, "--max-new-tokens", "3"],
            ["run", bundle, *asked, "--max-new-tokens", "3", "--json"],
            ["show", bundle, "--image", picture, "-o", beside / "drawing.png", "--force"],
            ["build", bundle],
            ["build", bundle, "--triton", beside / "served", "--force"],
            ["bench", bundle, *asked, "--rounds", "2", "--new-tokens", "2", "--no-memory"],
        ]
    return rng.choice(commands)
