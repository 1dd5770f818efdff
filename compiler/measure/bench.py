"""Time bundles side by side: every round runs every variant, so that a busy machine troubles all of them alike."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lmmprune.compiler.backends.open_sessions import import_backend
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.bundle.manifest import Manifest
from lmmprune.compiler.measure.follow_up import SecondQuestion
from lmmprune.compiler.measure.memory import Memory, measure_memory
from lmmprune.compiler.measure.report import (
    METRICS,
    BenchReport,
    FollowUp,
    Row,
    Spread,
    Throughput,
    find_products,
    paired_speedup,
)
from lmmprune.compiler.measure.seen import load_seen
from lmmprune.compiler.measure.statistics import speedup
from lmmprune.compiler.runtime.answer import Stats
from lmmprune.compiler.runtime.asked import Asked
from lmmprune.compiler.runtime.open_video import Clip
from lmmprune.compiler.runtime.prompt import check_pictures
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.compiler.targets import machine
from lmmprune.errors import InputError

WARM_UP_ROUNDS = 2
_SEED = 0


def bench(
    paths: Sequence[Path],
    image: Path | Sequence[Path],
    prompt: str,
    *,
    rounds: int = 10,
    new_tokens: int = 16,
    threads: int | None = None,
    memory: bool = True,
    follow_up: str | None = None,
    on_step: Callable[[str], None] = lambda _: None,
) -> BenchReport:
    """Measure every bundle on one question about a picture, or about several, interleaved in one process.

    A bundle that answers several questions at once is asked that one in all its rows; its times are those of the batch,
    and what it answers in a second stands beside. Each round runs all variants in a new random order;
    ``WARM_UP_ROUNDS`` are thrown away. Time to the first token is from the pixel values on (vision and prefill); the
    end-of-sequence token is ignored, so all generate equally many. Peak memory is measured first, each variant in a
    process of its own.

    Args:
        paths: Bundles; the first one is what the others are compared with.
        image: The picture, or several; of bundles that take videos the one.
        prompt: The question.
        rounds: Rounds that count, at least 2.
        new_tokens: Tokens per answer, at least 2.
        threads: Threads within an operator; None leaves it to the back end.
        memory: Whether to measure peak memory.
        follow_up: A second question, timed on what the decoder has read and with everything read again; None: none.
        on_step: Called with a description before every step, ``steps(...)`` times.

    Raises:
        InputError: A bundle was given twice, the picture or the question can't be used, or a bundle takes no second
            question.
        LmmpruneError: A bundle can't be loaded here.
    """
    images = [image] if isinstance(image, Path) else list(image)
    bundles = [Bundle.open(path) for path in paths]
    seen = [load_seen(bundle.manifest, images) for bundle in bundles]
    names = short_names(bundles)
    memories: list[Memory | None] = []
    runtimes, first = [], []
    for bundle, pictures in zip(bundles, seen, strict=True):
        runtimes.append(Runtime(bundle, threads=threads))
        # Refuses a prompt that is too long before anything is measured.
        first.append(ask(runtimes[-1], pictures, prompt, 1))
    later = []
    if follow_up is not None:
        for runtime, shown in zip(runtimes, seen, strict=True):
            known = runtime.encode_clip(shown) if isinstance(shown, Clip) else runtime.encode_missing(shown)
            later.append(SecondQuestion(runtime, known, prompt, follow_up))
    for one in later:
        one.ask(new_tokens, count=False)
    for name, bundle in zip(names, bundles, strict=True):
        if memory:
            on_step(f"memory of {name}")
        memories.append(measure_memory(bundle.path, images, prompt, threads=threads) if memory else None)
    shuffled = random.Random(_SEED)
    times: list[dict[str, list[float]]] = [{metric: [] for metric in METRICS} for _ in runtimes]
    each: list[list[float]] = [[] for _ in runtimes]
    for number in range(-WARM_UP_ROUNDS, rounds):
        for index in shuffled.sample(range(len(runtimes)), len(runtimes)):
            on_step(f"{'warm-up' if number < 0 else f'round {number + 1}'}: {names[index]}")
            stats = ask(runtimes[index], seen[index], prompt, new_tokens)
            values = stats.as_dict()
            if later:
                later[index].ask(new_tokens, count=number >= 0)
            if number >= 0:
                each[index].append((stats.ttft_ms + stats.decode_ms) / bundles[index].manifest.rows)
                for metric in METRICS:
                    times[index][metric].append(float(values[metric] or 0.0))
    again = [one.result() for one in later] if later else [None] * len(names)
    rows = tuple(
        dataclasses.replace(
            _row(name, bundle, used, own, times[0], second),
            throughput=Throughput.of(per_answer, each[0], new_tokens),
        )
        for name, bundle, used, own, second, per_answer in zip(
            names, bundles, memories, times, again, each, strict=True
        )
    )
    settings: dict[str, Any] = {
        "image": str(images[0]) if len(images) == 1 else [str(one) for one in images],
        "prompt": prompt,
        "rounds": rounds,
        "warm_up_rounds": WARM_UP_ROUNDS,
        "new_tokens": new_tokens,
        "threads": threads,
        **({} if follow_up is None else {"follow_up": follow_up}),
    }
    for name, stats in zip(names, first, strict=True):
        # What the pictures take, where a bundle has several sizes or grids.
        for taken, found in (("sizes", stats.sizes), ("tiles", stats.tiles)):
            if found:
                settings.setdefault(taken, {})[name] = list(found)
    return BenchReport(settings=settings, machine=describe_machine(bundles), rows=rows, products=find_products(rows))


def ask(runtime: Runtime, pictures: Sequence[Image.Image] | Clip, prompt: str, new_tokens: int) -> Stats:
    """Answer a question in as many rows as a bundle has, to so many tokens each; return the figures of one.

    Raises:
        InputError: The question or the pictures can't be used.
    """
    if runtime.bundle.manifest.batch is None or isinstance(pictures, Clip):
        answers = [runtime.answer(pictures, prompt, new_tokens, stop_at_eos=False)]
    else:
        check_pictures(runtime.bundle.manifest, len(pictures))
        one = Asked(image=pictures[0], prompt=prompt, max_new_tokens=new_tokens, stop_at_eos=False)
        answers = runtime.answer_batch([one] * runtime.bundle.manifest.rows)
    for answer in answers:
        _ = answer.text
    return answers[0].stats


def steps(variants: int, rounds: int, *, memory: bool = True) -> int:
    """Return how many steps ``bench`` reports."""
    return variants * (rounds + WARM_UP_ROUNDS + memory)


def short_names(bundles: Sequence[Bundle]) -> list[str]:
    """Return a name for each bundle: its folder's, or its path where two are called alike.

    Raises:
        InputError: One was given twice.
    """
    paths = [bundle.path.resolve() for bundle in bundles]
    if len(set(paths)) < len(paths):
        raise InputError("the same bundle was given twice: give each one once")
    short = [path.name for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]


def _row(
    name: str,
    bundle: Bundle,
    memory: Memory | None,
    own: dict[str, list[float]],
    first: dict[str, list[float]],
    second: FollowUp | None,
) -> Row:
    manifest: Manifest = bundle.manifest
    return Row(
        name=name,
        path=str(bundle.path),
        model=manifest.model,
        method=manifest.method,
        tokens_before=manifest.tokens_before,
        image_tokens=manifest.average_tokens,
        dtype=manifest.precision.dtype,
        int8=manifest.precision.int8,
        int4=manifest.precision.group,
        target=manifest.target,
        batch=manifest.rows,
        weights_bytes=bundle.bytes,
        memory=memory,
        samples={metric: tuple(own[metric]) for metric in METRICS},
        times={metric: Spread.of(own[metric]) for metric in METRICS},
        speedup={metric: paired_speedup(first[metric], own[metric]) for metric in METRICS},
        intervals={metric: speedup(first[metric], own[metric]) for metric in METRICS},
        sha256=bundle.sha256,
        follow_up=second,
    )


def describe_machine(bundles: Sequence[Bundle]) -> dict[str, Any]:
    """Return what the bundles run on: the machine, and the back ends with their versions."""
    backends = dict(import_backend(bundle.manifest.target) for bundle in bundles)
    return {**dataclasses.asdict(machine.detect_machine()), "backends": backends}
