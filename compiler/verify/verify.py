"""Check a bundle: well-formed graphs, untouched files, kept promises, and the same answers as the PyTorch model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmmprune.compiler.assets.text_layout import text_layout
from lmmprune.compiler.bundle.bundle import TOKENIZER, Bundle
from lmmprune.compiler.bundle.manifest import Manifest
from lmmprune.compiler.bundle.tile_grids import Grid, TileGrids
from lmmprune.compiler.data.calibration import Sample, load_calibration
from lmmprune.compiler.runtime.compose import PLACE
from lmmprune.compiler.verify import manifest_checks, parity
from lmmprune.compiler.verify.find_source import find_source
from lmmprune.compiler.verify.prompt import compare_prompts
from lmmprune.compiler.verify.replay import DecoderOutputs, Replay, VisionOutputs
from lmmprune.errors import BundleError, InputError, below, one_line, require, said
from lmmprune.models.source import Source
from lmmprune.progress import Progress, silent, step

STEPS = 8

Asked = tuple[Sequence[VisionOutputs], DecoderOutputs]
"""The pictures of a prompt, and what came of it."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was checked: what, whether it held, and the figures.

    Attributes:
        name: What.
        passed: Whether it held; None where that can't be told, and ``found`` says why.
        found: The figures, or what is wrong.
    """

    name: str
    passed: bool | None
    found: str


def verify(
    path: Path,
    *,
    samples: int = 4,
    data: Path | None = None,
    model: str | None = None,
    adapter: Path | None = None,
    progress: Progress = silent,
) -> list[Check]:
    """Check a bundle.

    Args:
        path: The bundle.
        samples: Pictures with questions to compare on.
        data: Where they are, as ``load_calibration`` takes it; None: built-in ones.
        model: Where its checkpoint is: a directory, a hub id or an alias; None: what the manifest names.
        adapter: Directory of the LoRA adapter that is merged into its weights.
        progress: Called with the step, what is done and how much there is.

    Returns:
        The checks, failed ones included.

    Raises:
        LmmpruneError: The bundle can't be opened at all, or its checkpoint isn't found.
    """
    bundle = Bundle.open(path)
    try:
        with step(progress, "checksums"):
            bundle.verify_checksums()
    except BundleError as error:
        # Nothing else about an edited bundle means anything.
        return [Check(name="checksums", passed=False, found=str(error))]
    checks = [Check(name="checksums", passed=True, found=f"{len(bundle.manifest.files)} files")]
    behind = [bundle.file(bucket.graph.file) for bucket in bundle.manifest.buckets]
    selection = bundle.manifest.selection
    between = [] if selection is None else [bundle.file(selection.file)]
    for graph in (bundle.vision, *behind, *between, bundle.decoder):
        with step(progress, f"checker {graph.name}"):
            checks.append(_well_formed(graph, bundle.manifest))
    source = find_source(bundle.manifest, model, adapter)
    with step(progress, "prompts"):
        prompts = compare_prompts(bundle, source)
    if prompts:
        checks.append(Check(name="prompt", passed=prompts[0], found=prompts[1]))
    pairs, refusal = _replay(bundle, source, samples, data, progress)
    if not pairs:
        return [*checks, _not_compared(f"the bundle takes none of the questions: {refusal}")]
    held = _promises(bundle.manifest, pairs)
    return checks + held + _parity(bundle, source, pairs, all(check.passed for check in held), progress)


def _well_formed(graph: Path, manifest: Manifest) -> Check:
    onnx = require("onnx", "export")
    name = f"checker {graph.name}"
    try:
        onnx.checker.check_model(_unlinked(onnx, graph) or str(graph), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, BundleError, ValueError) as error:
        return Check(name=name, passed=False, found=one_line(next(iter(str(error).splitlines()), "it doesn't say why")))
    return Check(name=name, passed=True, found=f"opset {manifest.opset}")


def _unlinked(onnx: Any, graph: Path) -> Any:
    """Return a graph whose external weights are inputs if they are links; None if they aren't.

    The checker refuses links, and files with a second name (onnx 1.23).
    """
    try:
        model = onnx.load(str(graph), load_external_data=False)
    except Exception as error:  # whatever the reader stumbles over, it is the file
        raise BundleError(f"'{graph}' isn't an ONNX file that can be read ({said(error)}): export again") from error
    outside = [tensor for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    places = {entry.value for tensor in outside for entry in tensor.external_data if entry.key == "location"}
    files = [graph, *(graph.parent / place for place in places)]
    if not any(file.is_symlink() or (file.exists() and file.stat().st_nlink > 1) for file in files):
        return None
    for tensor in outside:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        model.graph.initializer.remove(tensor)
    return model


def _replay(
    bundle: Bundle, source: Source, samples: int, data: Path | None, progress: Progress
) -> tuple[list[Asked], str]:
    """Run the graphs on some pictures; return also why the bundle refuses a question, such as a short one."""
    engine = Replay(bundle)
    # Every bucket gets a picture at least.
    buckets = len(bundle.manifest.buckets) or 1
    chosen = load_calibration(source, data, max(samples, buckets), option="--data").samples
    pairs: list[Asked] = []
    refusal = ""
    tiles = bundle.manifest.tile_grids
    seen: dict[int, list[VisionOutputs]] = {}
    for index in range(len(chosen)):
        places, question = _prompt(chosen, index, bundle.manifest)
        if bundle.manifest.joint:
            pictures = [engine.encode_image([chosen[place].image for place in places])]
        else:
            for place in places:
                if place not in seen and tiles is not None:
                    seen[place] = engine.encode_tiles(chosen[place].image, _grid(tiles, place))
                elif place not in seen:
                    seen[place] = [engine.encode_image(chosen[place].image, place % buckets)]
            pictures = [part for place in places for part in seen[place]]
        grids = None if tiles is None else [_grid(tiles, place) for place in places]
        try:
            pairs.append((pictures, engine.decode(pictures, question, STEPS, grids)))
        except InputError as error:
            refusal = str(error)
        progress("run the graphs", index + 1, len(chosen))
    return pairs, refusal


def _prompt(samples: Sequence[Sample], index: int, manifest: Manifest) -> tuple[list[int], str]:
    """Return the pictures of a prompt, and its question: as many as the bundle takes, then fewer, and so on.

    Every second prompt of several pictures says itself where they stand.
    """
    images = manifest.images
    count = images if manifest.joint else images - index % images
    places = [(index + more) % len(samples) for more in range(count)]
    question = samples[index].prompt
    if count > 1 and (index % 2 if manifest.joint else index // images % 2 == 0):
        question = f"{PLACE} {question} " + " or ".join([PLACE] * (count - 1)) + "?"
    return places, question


def _grid(tiles: TileGrids, place: int) -> Grid:
    """Return what a picture is cut into, whatever its own grid would be: the largest, the smallest, the next ones."""
    order = -1 - place // 2 if place % 2 == 0 else place // 2
    return tiles.grids[order % len(tiles.grids)]


def _promises(manifest: Manifest, pairs: Sequence[Asked]) -> list[Check]:
    """Check kept counts and cache lengths against the manifest."""
    counts = [
        fault
        for pictures, decoder in pairs
        for number, vision in enumerate(pictures)
        for fault in manifest_checks.broken_counts(vision, decoder, number)
    ]
    lengths = [fault for pictures, decoder in pairs for fault in manifest_checks.broken_lengths(pictures[0], decoder)]
    steps = [stage.tokens_out for stage in manifest.schedule]
    tokens = " -> ".join(str(count) for count in (manifest.tokens_before, *steps))
    tokens += manifest.whose_tokens
    if manifest.buckets:
        tokens = f"{manifest.tokens_before} -> {' or '.join(str(bucket.tokens) for bucket in manifest.buckets)}"
    offsets = sorted({-offset for offset in manifest.cache.length_offsets})
    return [
        Check(name="kept counts", passed=not counts, found=counts[0] if counts else f"visual tokens {tokens}"),
        Check(
            name="cache lengths",
            passed=not lengths,
            found=lengths[0] if lengths else f"prompt + step, less {', '.join(map(str, offsets))}",
        ),
    ]


def _parity(bundle: Bundle, source: Source, pairs: Sequence[Asked], held: bool, progress: Progress) -> list[Check]:
    """Compare with the PyTorch model."""
    from lmmprune.compiler.verify.reference import SITES, CutRefused, load_model, rule_options

    manifest = bundle.manifest
    if not held:
        return [_not_compared("the kept counts or cache lengths are wrong already")]
    if manifest.method is None and manifest.buckets:
        return [_not_compared("the manifest doesn't say by which method the buckets choose")]
    if manifest.method is not None and manifest.method not in SITES:
        return [_not_compared(f"the PyTorch reference doesn't know the method '{manifest.method}'")]
    try:
        options = rule_options(manifest.method or "", manifest.parameters, source.vision.layers)
    except CutRefused as error:
        return [_not_compared(f"the PyTorch reference can't follow: {error}")]
    inside = any(stage.in_decoder for stage in manifest.schedule)
    special_ids = text_layout(manifest.prompt, bundle.file(TOKENIZER), in_decoder=inside).special_ids
    try:
        advice = "try another release of transformers"
        with step(progress, "load the PyTorch model"), below("loading the checkpoint with transformers", advice):
            model = load_model(source)
    except CutRefused as error:
        return [_not_compared(str(error))]
    reference = parity.Reference(model, options, special_ids)
    try:
        return _compare(reference, manifest, pairs, progress)
    except CutRefused as error:
        return [Check(name="parity", passed=False, found=f"the manifest and the method don't fit: {error}")]


def _compare(
    reference: parity.Reference, manifest: Manifest, pairs: Sequence[Asked], progress: Progress
) -> list[Check]:
    precision = "int8" if manifest.precision.int8 else manifest.precision.dtype
    inside = "int4" if manifest.precision.int4 else precision
    if manifest.precision.carried:
        # The reference has the same weights; what is left is the rounding of activations, in the decoder.
        precision, inside = manifest.precision.dtype, "int8"
    own_pictures = list({id(vision): vision for pictures, _ in pairs for vision in pictures}.values())
    seen = [reference.encode_image(vision) for vision in own_pictures]
    said = []
    for index, (pictures, decoder) in enumerate(pairs):
        said.append(reference.decode(pictures, decoder))
        progress("compare", index + 1, len(pairs))
    checks = []

    def add(name: str, verdict: parity.Verdict, note: str = "") -> None:
        checks.append(Check(name=name, passed=verdict.passed, found=verdict.found + note))

    if manifest.buckets:
        own = [(vision.dynamic_count or 0, *reference.dynamic_count(vision)) for vision in own_pictures]
        add("dynamic counts", parity.judge_dynamic_counts(own, precision))
    if any(difference.overlaps for difference in seen):
        add("kept indices", parity.judge_kept(seen, precision))
    emulated = ", bfloat16 emulated" if manifest.precision.dtype == "bfloat16" else ""
    add("image features", parity.judge_values(seen, precision), emulated)
    if any(difference.overlaps for difference in said):
        add("kept in the decoder", parity.judge_kept(said, inside))
    fewest = min(len(difference.rows) for difference in said) - 1
    counts = {len(decoder.texts) - 1 for _, decoder in pairs}
    of = "images" if manifest.tile_grids else "pictures"
    several = f", prompts of {min(counts)} to {max(counts)} {of}" if max(counts) > 1 else ""
    add("logits", parity.judge_values(said, inside), f", prefill and {fewest} decode steps{emulated}{several}")
    return checks


def _not_compared(why: str) -> Check:
    return Check(name="parity", passed=None, found=f"not compared: {why}")
