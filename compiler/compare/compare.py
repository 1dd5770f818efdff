"""Compare bundles with another one (the unpruned one, as a rule) on pictures and prompts whose answers nobody knows.

The base answers greedily. Every other bundle is led through that answer, so that each of its tokens is judged behind
the same words. One bundle is loaded at a time, until times are taken.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lmmprune.compiler.bundle.bundle import TOKENIZER, Bundle
from lmmprune.compiler.compare.comparison import WORST, Compared, Comparison, Example, Other
from lmmprune.compiler.compare.fidelity import Measures, measure_fidelity, summarize
from lmmprune.compiler.compare.kept_answers import KeptAnswers, example_key
from lmmprune.compiler.compare.record import Pictures, Recorded, record_answer, score_answer
from lmmprune.compiler.data.check_questions import check_questions
from lmmprune.compiler.data.questions import Question
from lmmprune.compiler.measure.bench import WARM_UP_ROUNDS, describe_machine, short_names
from lmmprune.compiler.measure.matching import exact
from lmmprune.compiler.measure.statistics import Estimate, estimate, resample_means, speedup
from lmmprune.compiler.runtime.prompt import Prompter
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.compiler.runtime.show_kept import show_kept
from lmmprune.errors import InputError
from lmmprune.progress import Progress, counting, silent

TIMES = ("ttft_ms", "ms_per_token")
_TIMED_TOKENS = 8
_SEED = 0


@dataclass(frozen=True, kw_only=True)
class How:
    """How bundles are compared.

    Attributes:
        max_new_tokens: Answers are cut there.
        rounds: Timed rounds of all bundles together, at least 2; 0 takes no times.
        threads: Threads within an operator; None leaves it to the back end.
        kept_answers: Folder in which the base's answers are kept for the next time; None: nowhere.
        drawings: Whether to draw what is kept for the least faithful examples.
    """

    max_new_tokens: int = 32
    rounds: int = 10
    threads: int | None = None
    kept_answers: Path | None = None
    drawings: bool = False


def compare(
    base: Path, others: Sequence[Path], examples: Sequence[Question], how: How, progress: Progress = silent
) -> Comparison:
    """Compare bundles of one model.

    Args:
        base: The bundle that the others are compared with.
        others: At least one.
        examples: Pictures and prompts, at least one.
        how: Lengths, times, what is kept.
        progress: Called while it runs.

    Raises:
        InputError: Bundles of different models or tokenizers, a picture that can't be read, a prompt that is too long.
        LmmpruneError: A bundle can't be loaded here.
    """
    bundles = [Bundle.open(path) for path in (base, *others)]
    names = short_names(bundles)
    for bundle in bundles[1:]:
        _check_same_model(bundles[0], bundle)
    for bundle in bundles:
        check_questions(bundle.manifest, examples)
    # Those of one picture stand together: they share its vision pass.
    examples = sorted(examples, key=lambda example: example.picture)
    answers = answer_examples(bundles[0], names[0], examples, how, progress)
    prompter = Prompter(bundles[0].manifest, bundles[0].file(TOKENIZER))
    said = [prompter.decode(answer.tokens.tolist()) for answer in answers]
    found = [
        judge_examples(bundle, name, examples, answers, said, how, progress)
        for name, bundle in zip(names[1:], bundles[1:], strict=True)
    ]
    times = take_times(bundles, examples, how, progress) if how.rounds else [{} for _ in bundles]
    accuracies = _accuracies(examples, [said, *([one.said for one in seen] for seen, _ in found)])
    rows = [
        Compared.of(
            name,
            bundle,
            times={metric: float(np.median(own[metric])) for metric in own},
            ratios={metric: speedup(own[metric], times[0][metric]) for metric in own},
            accuracy=accuracy,
            accuracy_difference=difference,
        )
        for name, bundle, own, (accuracy, difference) in zip(names, bundles, times, accuracies, strict=True)
    ]
    return Comparison(
        base=rows[0],
        others=tuple(_other(row, seen, drawings) for row, (seen, drawings) in zip(rows[1:], found, strict=True)),
        settings={
            "examples": len(examples),
            "pictures": len({example.picture for example in examples}),
            "max_new_tokens": how.max_new_tokens,
            "rounds": how.rounds,
            "threads": how.threads,
        },
        machine=describe_machine(bundles),
    )


def _check_same_model(base: Bundle, other: Bundle) -> None:
    """Refuse bundles whose answers can't be compared token by token.

    Raises:
        InputError: They are of different models or have different tokenizers.
    """
    one, two = base.manifest, other.manifest
    if one.files[TOKENIZER].sha256 != two.files[TOKENIZER].sha256:
        raise InputError(f"'{base.path}' and '{other.path}' have different tokenizers: compare bundles of one model")
    if (one.source.digest, one.model, one.adapter) != (two.source.digest, two.model, two.adapter):
        raise InputError(
            f"'{base.path}' is of {one.model}, '{other.path}' of {two.model} or other weights of that name: compare"
            " bundles of one model"
        )


def _by_picture(runtime: Runtime, examples: Sequence[Question]) -> Iterator[tuple[Question, Pictures]]:
    """Give every example with its encoded pictures; neighbours of the same share them."""
    seen: tuple[str, Pictures] | None = None
    for example in examples:
        if seen is None or seen[0] != example.picture:
            seen = example.picture, runtime.encode_images(example.pictures())
        yield example, seen[1]


def answer_examples(
    bundle: Bundle, name: str, examples: Sequence[Question], how: How, progress: Progress
) -> list[Recorded]:
    """Return the base's answers; those that are kept cost nothing, not even loading it."""
    keys, step = [], counting(progress, len(examples))
    for example in examples:
        step("reading pictures")
        keys.append(example_key(example.pictures(), example.prompt))
    kept = KeptAnswers(how.kept_answers, bundle, how.max_new_tokens)
    missing = [example for example, key in zip(examples, keys, strict=True) if key not in kept]
    if missing:
        step = counting(progress, len(missing))
        runtime = Runtime(bundle, threads=how.threads)
        wanted = iter([key for key in keys if key not in kept])
        try:
            for example, picture in _by_picture(runtime, missing):
                step(f"answers of {name}")
                kept[next(wanted)] = record_answer(runtime, picture, example.prompt, how.max_new_tokens)
        finally:
            runtime.close()
            kept.save()
    return [kept[key] for key in keys]


def judge_examples(
    bundle: Bundle,
    name: str,
    examples: Sequence[Question],
    answers: Sequence[Recorded],
    said: Sequence[str],
    how: How,
    progress: Progress,
) -> tuple[list[Example], tuple[bytes, ...]]:
    """Lead a bundle through the base's answers; return what it made of the examples, and drawings of the worst."""
    runtime, step = Runtime(bundle, threads=how.threads), counting(progress, len(examples))
    found = []
    for (example, picture), answer, text in zip(_by_picture(runtime, examples), answers, said, strict=True):
        step(f"answers of {name}")
        scores = score_answer(runtime, picture, example.prompt, answer.tokens.tolist())
        fidelity = measure_fidelity(answer, scores)
        own = text
        if not fidelity.exact:
            tokens = record_answer(runtime, picture, example.prompt, how.max_new_tokens).tokens
            own = runtime.prompter.decode(tokens.tolist())
        found.append(
            Example(
                picture=example.picture,
                prompt=example.prompt,
                kind=example.kind,
                answers=example.answers,
                base_said=text,
                said=own,
                fidelity=fidelity,
            )
        )
    load = {example.picture: example.load for example in examples}
    drawings = [_draw(runtime, load[one.picture](), one.prompt) for one in (worst(found) if how.drawings else ())]
    runtime.close()
    return found, tuple(drawings)


def _draw(runtime: Runtime, picture: Image.Image, prompt: str) -> bytes:
    """Return a PNG of the patches that stay."""
    packed = io.BytesIO()
    show_kept(runtime, picture, prompt=prompt).image.save(packed, "PNG")
    return packed.getvalue()


def worst(examples: Sequence[Example]) -> list[Example]:
    """Return the least faithful examples: those that differ soonest, then those of the largest divergence."""
    return sorted(examples, key=lambda one: (one.fidelity.prefix, -one.fidelity.kl))[:WORST]


def take_times(
    bundles: Sequence[Bundle], examples: Sequence[Question], how: How, progress: Progress
) -> list[dict[str, list[float]]]:
    """Time all bundles, interleaved: every round asks all of them the same, in a new random order."""
    runtimes = [Runtime(bundle, threads=how.threads) for bundle in bundles]
    times: list[dict[str, list[float]]] = [{metric: [] for metric in TIMES} for _ in bundles]
    shuffled, step = random.Random(_SEED), counting(progress, (how.rounds + WARM_UP_ROUNDS) * len(bundles))
    for number in range(-WARM_UP_ROUNDS, how.rounds):
        example = examples[shuffled.randrange(len(examples))]
        pictures = example.pictures()
        for index in shuffled.sample(range(len(bundles)), len(bundles)):
            step("taking times")
            answer = runtimes[index].answer(pictures, example.prompt, _TIMED_TOKENS, stop_at_eos=False)
            _ = answer.text
            values = answer.stats.as_dict()
            if number >= 0:
                for metric in TIMES:
                    times[index][metric].append(float(values[metric] or 0.0))
    for runtime in runtimes:
        runtime.close()
    return times


def _accuracies(
    examples: Sequence[Question], said: Sequence[Sequence[str]]
) -> list[tuple[Estimate | None, Estimate | None]]:
    """Return each bundle's accuracy, and by how much it differs from the first one's, where right answers are known."""
    known = [number for number, example in enumerate(examples) if example.answers]
    if not known:
        return [(None, None) for _ in said]
    hits = np.array([[exact(texts[number], examples[number].answers) for number in known] for texts in said])
    draws, means = resample_means(hits, [examples[number].picture for number in known]), hits.mean(axis=1)
    return [
        (estimate(means[row], draws[:, row]), estimate(means[row] - means[0], draws[:, row] - draws[:, 0]))
        for row in range(len(said))
    ]


def _other(row: Compared, found: Sequence[Example], drawings: tuple[bytes, ...]) -> Other:
    kinds = sorted({one.kind for one in found if one.kind is not None})

    def summary(chosen: Sequence[Example]) -> Measures:
        return summarize([one.fidelity for one in chosen], [one.picture for one in chosen])

    return Other(
        bundle=row,
        measures=summary(found),
        kinds={kind: summary([one for one in found if one.kind == kind]) for kind in kinds},
        worst=tuple(worst(found)),
        drawings=drawings,
    )
