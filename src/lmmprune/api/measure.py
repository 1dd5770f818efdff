"""What a bundle costs and how well it answers: time, kernels, accuracy, FLOPs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmmprune.api.model import Model
from lmmprune.compiler.bundle import seal
from lmmprune.compiler.data.questions import Question, load_examples, load_questions
from lmmprune.compiler.flops.formula import TEXT_TOKENS
from lmmprune.compiler.measure.evaluate import Evaluation
from lmmprune.compiler.measure.report import BenchReport
from lmmprune.errors import InputError
from lmmprune.progress import Progress, counting, silent

if TYPE_CHECKING:
    from lmmprune.compiler.compare.comparison import Comparison
    from lmmprune.compiler.explain.rows import Explanation
    from lmmprune.compiler.export.values import Keep, Ratio
    from lmmprune.compiler.measure.read_result import Imported

File = str | PathLike[str]


@seal.may_be_unsealed
def bench(
    bundles: Sequence[File],
    image: File | Sequence[File],
    prompt: str,
    *,
    rounds: int = 10,
    new_tokens: int = 16,
    threads: int | None = None,
    memory: bool = True,
    follow_up: str | None = None,
    unsealed: bool = False,
    progress: Progress = silent,
) -> BenchReport:
    """Time bundles side by side, interleaved in one process; the first one is what the others are compared with.

    Args:
        bundles: Their directories.
        image: The picture, or several, as ``Model.answer`` takes them; of bundles that take videos the path of one.
        prompt: The question.
        rounds: Rounds that count, at least 2.
        new_tokens: Tokens per answer, at least 2.
        threads: Threads within an operator, where the CPU computes; None leaves it to the back end.
        memory: Whether to measure peak memory, a process each.
        follow_up: A second question, whose prefill is timed on what the decoder has read, and with everything read
            again; None: none.
        unsealed: Read bundles whose manifest was edited, or is of the format before seals, as they are.
        progress: Called while it runs.

    Raises:
        LmmpruneError: A bundle, the picture or the question can't be used here.
    """
    from lmmprune.compiler.measure import bench as room

    paths = [Path(bundle) for bundle in bundles]
    step = counting(progress, room.steps(len(paths), rounds, memory=memory))
    return room.bench(
        paths,
        [Path(one) for one in ([image] if isinstance(image, (str, PathLike)) else image)],
        prompt,
        rounds=rounds,
        new_tokens=new_tokens,
        threads=threads,
        memory=memory,
        follow_up=follow_up,
        on_step=step,
    )


@seal.may_be_unsealed
def compare(
    base: File,
    others: Sequence[File],
    data: File | Sequence[Question],
    *,
    prompts: Sequence[str] = (),
    limit: int | None = None,
    max_new_tokens: int = 32,
    rounds: int = 10,
    threads: int | None = None,
    keep_answers: bool = True,
    drawings: bool = False,
    unsealed: bool = False,
    progress: Progress = silent,
) -> Comparison:
    """Compare bundles with another one, the unpruned one as a rule, on pictures and prompts; no answers need be known.

    The base answers greedily; every other bundle is led through its answers.

    Args:
        base: Directory of the bundle that the others are compared with.
        others: Those of the others.
        data: A folder of pictures, a JSON Lines file with ``image`` and ``prompt`` (``answer`` and ``kind`` where they
            are known), ``tiny-llava``, or the examples themselves.
        prompts: What to ask about each picture of a folder.
        limit: Use only the first so many examples.
        max_new_tokens: Answers are cut there.
        rounds: Timed rounds that count, at least 2; 0 takes no times, and loads one bundle at a time.
        threads: Threads within an operator; None leaves it to the back end.
        keep_answers: Whether to keep the base's answers on disk for the next time.
        drawings: Whether to draw what each bundle keeps for its least faithful examples.
        unsealed: Read bundles whose manifest was edited, or is of the format before seals, as they are.
        progress: Called while it runs.

    Raises:
        LmmpruneError: A bundle, a picture or a prompt can't be used here.
    """
    from lmmprune.caches import cache_directory
    from lmmprune.compiler.compare import compare as room

    examples = load_examples(str(data), prompts) if isinstance(data, (str, PathLike)) else list(data)
    how = room.How(
        max_new_tokens=max_new_tokens,
        rounds=rounds,
        threads=threads,
        kept_answers=cache_directory("answers") if keep_answers else None,
        drawings=drawings,
    )
    return room.compare(Path(base), [Path(other) for other in others], examples[:limit], how, progress)


def read_result(file: File) -> Imported:
    """Read the result.json that a plan's measure.sh wrote elsewhere: a report as ``bench`` makes it, and what failed.

    Raises:
        InputError: It isn't such a file.
    """
    from lmmprune.compiler.measure.read_result import import_result

    return import_result(Path(file))


def draw_chart(report: BenchReport, out: File, *, force: bool = False) -> None:
    """Draw a report of ``bench`` or ``read_result`` as bars.

    Args:
        report: The report.
        out: The PNG file.
        force: Replace a chart that is there.

    Raises:
        InputError: The file can't be written.
        MissingExtraError: matplotlib isn't installed.
    """
    from lmmprune.compiler.measure import chart

    chart.check_chart(Path(out), force=force)
    chart.draw_chart(report, Path(out))


@seal.may_be_unsealed
def explain(
    bundles: Sequence[File],
    image: File,
    prompt: str,
    *,
    rounds: int = 10,
    threads: int | None = None,
    unsealed: bool = False,
    progress: Progress = silent,
) -> Explanation:
    """Say which kernel computed each layer of bundles for ``ort-cpu``, how long, and why one stayed in floating point.

    Args:
        bundles: Their directories; the first one is what the others are compared with.
        image: The picture.
        prompt: The question.
        rounds: Runs of each phase that count.
        threads: Threads within an operator; None leaves it to ONNX Runtime.
        unsealed: Read bundles whose manifest was edited, or is of the format before seals, as they are.
        progress: Called while it runs.

    Raises:
        LmmpruneError: A bundle is for another target, or the picture or the question can't be used.
    """
    from lmmprune.compiler.explain import explain as room

    paths = [Path(bundle) for bundle in bundles]
    step = counting(progress, room.steps(len(paths)))
    return room.explain(paths, Path(image), prompt, rounds=rounds, threads=threads, on_step=step)


@seal.may_be_unsealed
def evaluate(
    bundle: File | Model,
    data: File | Sequence[Question],
    *,
    format: str | None = None,
    pictures: File | None = None,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    match: str = "exact",
    threads: int | None = None,
    unsealed: bool = False,
    progress: Progress = silent,
) -> Evaluation:
    """Ask questions with known answers; say the share of right answers and of right first words, with intervals.

    Args:
        bundle: Its directory, or a model that is loaded.
        data: ``tiny-llava``, a JSON Lines file with ``image``, ``prompt``, ``answer`` or ``answers`` and perhaps
            ``kind``, questions, or the folder of a public set.
        format: The public set: ``pope``, ``gqa``, ``mme``, ``textvqa``, ``scienceqa``, ``mmbench`` or ``refcoco``. It
            says how to ask and what is right; the result has its published ``figures``.
        pictures: Where the set's pictures are; None: where its own layout has them.
        limit: Ask only the first so many.
        max_new_tokens: Answers are cut there; None: 16, or what the format needs.
        match: When an answer is right: ``exact``, ``contains`` (it stands in what was said), or ``vqa`` (by how many
            of the answers, as in VQA).
        threads: Threads within an operator, where the bundle is loaded here.
        unsealed: Read a bundle whose manifest was edited, or is of the format before seals, as it is.
        progress: Called while it runs.

    Raises:
        LmmpruneError: The bundle, a picture or a question can't be used.
    """
    from lmmprune.compiler.measure.evaluate import evaluate as run
    from lmmprune.compiler.measure.formats.table import get_format, read_format

    form = None if format is None else get_format(format)
    if pictures is not None and (form is None or not isinstance(data, (str, PathLike))):
        raise InputError("pictures are given, which is for the folder of a public set: give its format, too")
    if form is not None and isinstance(data, (str, PathLike)):
        asked = read_format(form, Path(data), None if pictures is None else Path(pictures), limit)
    else:
        asked = (load_questions(str(data)) if isinstance(data, (str, PathLike)) else list(data))[:limit]
    step = counting(progress, len(asked))
    model = bundle if isinstance(bundle, Model) else Model(bundle, threads=threads)
    try:
        return run(
            model.runtime,
            asked,
            max_new_tokens=max_new_tokens,
            match=match,
            form=form,
            on_answer=lambda: step("answering"),
        )
    finally:
        if model is not bundle:
            model.close()


@seal.may_be_unsealed
def flops(bundle: File, *, unsealed: bool = False) -> dict[str, Any]:
    """Say what pruning saves in a bundle's prefill: FLOPs and key/value cache, before and after.

    Args:
        bundle: Its directory.
        unsealed: Read a bundle whose manifest was edited, or is of the format before seals, as it is.

    Returns:
        ``sites``; ``flops`` of ``vision`` and ``prefill``, and ``kv_bytes``, each with ``before`` and ``after``;
        ``counted``: the FLOPs in the files, None where the extra 'export' isn't installed.

    Raises:
        BundleError: It isn't a bundle.
    """
    from lmmprune.compiler.flops.report import bundle_report

    return bundle_report(Path(bundle))


def flops_of_model(
    model: File,
    tokens: Ratio | Keep | None = None,
    *,
    schedule: Mapping[str, int] | File | None = None,
    method: str | None = None,
    options: Mapping[str, str] | None = None,
    text_tokens: int = TEXT_TOKENS,
    trace_layers: int | None = None,
) -> dict[str, Any]:
    """Say what pruning would save in a model's prefill, by formula; no weight is read.

    Args:
        model: Alias, hub id, or local directory.
        tokens: ``Ratio(removed)`` or ``Keep(count)``; None prunes nothing.
        schedule: In place of ``tokens``, as for ``export``.
        method: Whose schedule to follow; None: all that goes is gone before the decoder.
        options: Hyper-parameter of the method -> value as text.
        text_tokens: Text tokens beside the visual ones.
        trace_layers: Also trace so many decoder layers and count in their graph, under ``graph``.

    Returns:
        ``visual_tokens``, ``prefill_flops`` and ``kv_bytes``, each with ``before`` and ``after``; ``layers``; the
        ``convention`` of counting.

    Raises:
        LmmpruneError: The model or the method is unknown, or the count can't be.
    """
    from lmmprune.api.schedule import schedule_of
    from lmmprune.compiler.export.values import Keep, Ratio
    from lmmprune.compiler.flops.report import model_report, traced_report

    found = model_report(
        str(model),
        ratio=tokens.removed if isinstance(tokens, Ratio) else None,
        keep=tokens.tokens if isinstance(tokens, Keep) else None,
        text_tokens=text_tokens,
        method=method,
        options=dict(options or {}),
        schedule=None if schedule is None else schedule_of(schedule, tokens).counts,
    )
    if trace_layers is not None:
        sums = {side: count + text_tokens for side, count in found["visual_tokens"].items()}
        found["graph"] = traced_report(str(model), trace_layers, sums)
    return found
