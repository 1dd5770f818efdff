"""Explain bundles: run each graph with the profiler on and say which kernel computed each of its products."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmmprune.compiler.bundle.bundle import PREPROCESSOR, TOKENIZER, Bundle
from lmmprune.compiler.bundle.interface import SELECTION
from lmmprune.compiler.explain.profile_ort import Feeds, ProfiledSession, Times
from lmmprune.compiler.explain.rows import PHASES, Explanation, KernelRow, VariantKernels, make_row, phase_total
from lmmprune.compiler.runtime.kv_cache import KvCache
from lmmprune.compiler.runtime.open_picture import load_image
from lmmprune.compiler.runtime.preprocess import Preprocessor
from lmmprune.compiler.runtime.prompt import Prompter
from lmmprune.compiler.runtime.select_tokens import select_tokens
from lmmprune.compiler.targets.targets import TARGETS
from lmmprune.errors import InputError, TargetError, require
from lmmprune.names import IMAGE_FEATURES, INPUT_IDS, LOGITS, POSITION_IDS

WARM_UP_RUNS = 2


def explain(
    paths: Sequence[Path],
    image: Path,
    prompt: str,
    *,
    rounds: int = 10,
    threads: int | None = None,
    on_step: Callable[[str], None] = lambda _: None,
) -> Explanation:
    """Tell which kernel ran for every product of every bundle, how long, and why one stayed in floating point.

    One graph is in memory at a time. The profiler times nodes by themselves: use the bench's numbers for how long a
    bundle takes.

    Args:
        paths: Bundles for ``ort-cpu``; the first one is what the others are compared with.
        image: The picture.
        prompt: The question.
        rounds: Runs of each phase that count; ``WARM_UP_RUNS`` go before.
        threads: Threads within an operator; None leaves it to ONNX Runtime.
        on_step: Called with a description before every step, ``steps(...)`` times.

    Raises:
        InputError: The picture or the question can't be used, or there is no room for the optimised graphs.
        TargetError: A bundle is for another target.
        BundleError: A bundle can't be loaded.
        MissingExtraError: onnxruntime or onnx-ir isn't installed.
    """
    bundles = [Bundle.open(path) for path in paths]
    for bundle in bundles:
        check_explainable(bundle)
    picture = load_image(image)
    variants = []
    for bundle in bundles:
        name = bundle.path.name if len({b.path.name for b in bundles}) == len(bundles) else str(bundle.path)
        on_step(f"kernels of {name}: vision")
        rows, times, outputs = _vision(bundle, Preprocessor.load(bundle.file(PREPROCESSOR))(picture), rounds, threads)
        on_step(f"kernels of {name}: decoder")
        more, others = _decoder(bundle, prompt, outputs, rounds, threads)
        rows, times = [*rows, *more], {**times, **others}
        phases = {phase: phase_total(rows, phase, times[phase]) for phase in PHASES if phase in times}
        variants.append(VariantKernels(name=name, rows=tuple(rows), phases=phases))
    return Explanation(rounds=rounds, variants=tuple(variants))


def steps(variants: int) -> int:
    """Return how many steps ``explain`` reports."""
    return 2 * variants


def check_explainable(bundle: Bundle) -> None:
    """Check that a bundle's kernels can be told.

    Raises:
        TargetError: It isn't for ONNX Runtime on the CPU.
        InputError: It has several token counts or sizes, sees several pictures together, or cuts them into tiles.
        MissingExtraError: onnx-ir isn't installed.
    """
    manifest = bundle.manifest
    target = TARGETS.get(manifest.target)
    if target is None or target.provider is None or target.device != "cpu":
        raise TargetError(
            f"'{bundle.path}' is for '{manifest.target}', --explain reads the profile of 'ort-cpu': "
            "export with '--target ort-cpu'"
        )
    if manifest.buckets:
        raise InputError(f"'{bundle.path}' has several token counts, --explain takes one: export with --ratio")
    if manifest.video is not None:
        raise InputError(f"'{bundle.path}' answers about {manifest.video.takes}, --explain asks about a picture")
    if manifest.sizes:
        raise InputError(f"'{bundle.path}' has several sizes of pictures, --explain takes one: export with one")
    if manifest.batch is not None:
        said = f"'{bundle.path}' answers {manifest.rows} questions at once, --explain asks one"
        raise InputError(f"{said}: export without --batch")
    if manifest.joint:
        raise InputError(f"'{bundle.path}' sees {manifest.images} pictures together, --explain asks about one")
    if manifest.tile_grids is not None:
        raise InputError(
            f"'{bundle.path}' sees a picture's tiles one by one, --explain looks at one image: export without --tiles"
        )
    require("onnx_ir", "export")


def graph_rows(graph: str, path: Path, session: ProfiledSession) -> tuple[list[KernelRow], dict[str, Times]]:
    """Stop a session's profiler and return a row for every product of its graph, and the times of its phases.

    Args:
        graph: ``vision``, ``selection`` or ``decoder``.
        path: The exported graph.
        session: Where it ran.
    """
    from lmmprune.compiler.explain.layers import read_layers
    from lmmprune.compiler.explain.match import match_kernels

    times = session.finish()
    layers = read_layers(path)
    kernels = match_kernels(layers, session.optimised)
    quantized = any(layer.quantized for layer in layers)
    return [make_row(graph, layer, kernels.get(layer.node), times, quantized=quantized) for layer in layers], times


def _vision(
    bundle: Bundle, pixels: NDArray[Any], rounds: int, threads: int | None
) -> tuple[list[KernelRow], dict[str, Times], dict[str, NDArray[Any]]]:
    entry = bundle.manifest.vision.inputs[0]
    feeds = {entry.name: pixels.astype(entry.dtype, copy=False)}
    with ProfiledSession(bundle.vision, threads=threads, expected=bundle.manifest.vision) as session:
        for number in range(-WARM_UP_RUNS, rounds):
            outputs = session.run(feeds, None if number < 0 else "vision")
        return *graph_rows("vision", bundle.vision, session), outputs


def _decoder(
    bundle: Bundle, prompt: str, vision: Mapping[str, NDArray[Any]], rounds: int, threads: int | None
) -> tuple[list[KernelRow], dict[str, Times]]:
    manifest = bundle.manifest
    prompter = Prompter(manifest, bundle.file(TOKENIZER))
    kept = None if manifest.kept is None else vision[manifest.kept][0]
    rows: list[KernelRow] = []
    times: dict[str, Times] = {}

    def choose(feeds: Feeds) -> dict[str, NDArray[Any]]:
        assert manifest.selection is not None
        path = bundle.file(manifest.selection.file)
        with ProfiledSession(path, threads=threads) as session:
            for number in range(-WARM_UP_RUNS, rounds):
                outputs = session.run(feeds, None if number < 0 else SELECTION)
            more, others = graph_rows(SELECTION, path, session)
        rows.extend(more)
        times.update(others)
        return outputs

    entering = select_tokens(manifest, choose, prompter.encode(prompt), [vision[IMAGE_FEATURES]], [kept])
    encoded, features = entering.prompt, entering.features
    positions = prompter.positions(encoded, entering.kept)
    prefill: Feeds = {
        INPUT_IDS: encoded.input_ids,
        IMAGE_FEATURES: features,
        POSITION_IDS: positions,
    }
    cache = KvCache[NDArray[Any]](manifest, np.asarray, np.asarray)
    in_place = manifest.cache.in_place
    with ProfiledSession(bundle.decoder, threads=threads, expected=bundle.manifest.decoder) as session:
        for number in range(-WARM_UP_RUNS, rounds):
            cache.clear()
            feeds = {**prefill, **cache.feeds(encoded.length)}
            outputs = session.run(feeds, None if number < 0 else "prefill", in_place)
            cache.take(outputs, tokens=encoded.length)
            token = np.array([[int(outputs[LOGITS][0, -1].argmax())]], np.int64)
            decode = {INPUT_IDS: token, IMAGE_FEATURES: features, POSITION_IDS: positions[..., -1:] + 1}
            session.run(decode | cache.feeds(1), None if number < 0 else "decode", in_place)
        more, others = graph_rows("decoder", bundle.decoder, session)
    return [*rows, *more], {**times, **others}
