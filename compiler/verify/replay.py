"""Run a bundle's graphs one call at a time and keep all that they say, for ``verify``."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lmmprune.compiler.backends.cpu_session import cpu_session, run_all
from lmmprune.compiler.backends.numpy_types import numpy_type
from lmmprune.compiler.backends.one_row import run_repeated
from lmmprune.compiler.bundle.bundle import PREPROCESSOR, TOKENIZER, Bundle
from lmmprune.compiler.bundle.interface import View
from lmmprune.compiler.bundle.manifest import Bucket, Graph, Manifest
from lmmprune.compiler.bundle.tile_grids import Grid, images_of
from lmmprune.compiler.bundle.views import seen_as
from lmmprune.compiler.runtime.choose_view import choose_view
from lmmprune.compiler.runtime.decode_steps import Feeds, Outputs, decode_steps, drive
from lmmprune.compiler.runtime.encoded import Clock
from lmmprune.compiler.runtime.open_video import Clip
from lmmprune.compiler.runtime.preprocess import Preprocessor
from lmmprune.compiler.runtime.prompt import Prompter
from lmmprune.compiler.runtime.select_tokens import select_tokens
from lmmprune.compiler.targets.targets import TARGETS
from lmmprune.names import DYNAMIC_COUNT, IMAGE_FEATURES, KEPT, LOGITS, PIXEL_VALUES

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class VisionOutputs:
    """What the vision graph makes of a picture.

    Attributes:
        manifest: What holds for this picture: the bundle's, with the counts of the bucket or the size that it took.
        pixels: float32 ``[1,3,height,width]``, or of all tiles or pictures that the graph sees together.
        features: ``[1,K,C]``, in the graph's type.
        kept: The outputs with kept places, ``[1,K]`` each.
        dynamic_count: How many tokens the method itself would keep; None without buckets.
        view: The size or grid that it took; None where the bundle has one.
        clock: When all views of its video are, where it is of one.
        inner: Whether it is a view that others follow, so that its last token, a newline, isn't read.
    """

    manifest: Manifest
    pixels: Array
    features: Array
    kept: Mapping[str, Array]
    dynamic_count: int | None
    view: View | None = None
    clock: Clock | None = None
    inner: bool = False

    @property
    def read(self) -> tuple[Array, Array | None]:
        """Features ``[1,K,C]`` and places ``[K]`` that the decoder reads."""
        end = self.features.shape[1] - self.inner
        return self.features[:, :end], None if self.places is None else self.places[:end]

    @property
    def counts(self) -> list[int]:
        """Tokens of each picture that it is of: one, unless the bundle chooses among several together."""
        if not self.manifest.joint or self.places is None:
            return [self.read[0].shape[1]]
        owners = np.maximum.accumulate(np.maximum(self.places, 0) // self.manifest.picture_tokens)
        owners = np.minimum(owners, self.manifest.images - 1)
        return [int((owners == picture).sum()) for picture in range(self.manifest.images)]

    @property
    def places(self) -> Array | None:
        """The patch ``[K]`` of each feature; None when nothing was dropped."""
        return None if self.manifest.kept is None else self.kept[self.manifest.kept][0]


@dataclass(frozen=True, kw_only=True)
class DecoderOutputs:
    """What the decoder makes of it: the prefill and some decode steps.

    Attributes:
        texts: Ids before the first picture, between every two, and behind the last.
        tokens: The ids chosen, 1 + steps.
        logits: float32 ``[1 + steps, V]``.
        kept: For each picture the outputs of selection and prefill with kept places, ``[1,K]`` each, among what left
            the vision graph.
        lengths: Lengths of each layer's cache after every call, ``[1 + steps, L]``.
    """

    texts: list[list[int]]
    tokens: list[int]
    logits: Array
    kept: Sequence[Mapping[str, Array]]
    lengths: Array

    @property
    def prefix(self) -> list[int]:
        """Ids before the first picture."""
        return self.texts[0]

    @property
    def tail(self) -> list[int]:
        """Ids behind the last picture."""
        return self.texts[-1]


def kept_outputs(manifest: Manifest) -> dict[str, str]:
    """Return the output that tells the kept places, for each site that removes something."""
    return {stage.site: stage.kept for stage in manifest.schedule if stage.kept is not None}


def of_bucket(manifest: Manifest, bucket: Bucket) -> Manifest:
    """Return the manifest as if the bundle had this one count only."""
    schedule = tuple(dataclasses.replace(stage, tokens_out=bucket.tokens) for stage in manifest.schedule)
    return dataclasses.replace(manifest, schedule=schedule, image_tokens=bucket.tokens)


class Replay:
    """The bundle's graphs on ONNX Runtime's CPU provider, whatever the target."""

    def __init__(self, bundle: Bundle) -> None:
        """Load all graphs."""
        self._manifest = bundle.manifest

        def load(graph: Graph) -> Any:
            file, precision = bundle.file(graph.file), bundle.manifest.precision
            return load_on_cpu(file, bundle.manifest.target, precision.dtype, expected=graph)

        self._vision, self._decoder = load(bundle.manifest.vision), load(bundle.manifest.decoder)
        self._views = {name: load(graph) for view in bundle.manifest.sizes for name, graph in view.graphs.items()}
        selection = bundle.manifest.selection
        self._selection = None if selection is None else load(selection)
        self._buckets = [load(bucket.graph) for bucket in bundle.manifest.buckets]
        self._preprocess = Preprocessor.load(bundle.file(PREPROCESSOR))
        self._tokenizer = bundle.file(TOKENIZER)

    def encode_image(
        self, image: Image.Image | Sequence[Image.Image], bucket: int = 0, view: View | None = None
    ) -> VisionOutputs:
        """Run the vision graph on a picture, or on all those that it sees together.

        Where there are buckets, the graph of the given one runs then. Where there are several sizes, that of ``view``
        runs, or of what the picture takes by itself.
        """
        images = [image] if isinstance(image, Image.Image) else image
        view = view or choose_view(self._manifest, images[0])
        steps = self._preprocess if view is None else self._preprocess.for_view(view)
        return self._encode_pixels(np.concatenate([steps(one) for one in images]), bucket, view)

    def encode_tiles(self, image: Image.Image, grid: Grid) -> list[VisionOutputs]:
        """Run the vision graph on each tile of a picture, cut into this grid, and on its overview."""
        return [self._encode_pixels(tile) for tile in np.split(self._preprocess(image, grid), images_of(grid))]

    def _encode_pixels(self, pixels: Array, bucket: int = 0, view: View | None = None) -> VisionOutputs:
        manifest = seen_as(self._manifest, view)
        graph = self._vision if view is None else self._views[view.component]
        given = {PIXEL_VALUES: pixels.astype(numpy_type(manifest.vision.inputs[0].dtype))}
        found = self._run(graph, manifest.vision, given)
        dynamic_count = int(found[DYNAMIC_COUNT][0]) if DYNAMIC_COUNT in found else None
        if manifest.buckets:
            chosen = manifest.buckets[bucket]
            manifest = of_bucket(manifest, chosen)
            found = run_graph(
                self._buckets[bucket], {tensor.name: found[tensor.name] for tensor in chosen.graph.inputs}
            )
        return VisionOutputs(
            manifest=manifest,
            pixels=pixels,
            features=found[IMAGE_FEATURES],
            kept=_kept(found),
            dynamic_count=dynamic_count,
            view=view,
        )

    def encode_clip(self, clip: Clip) -> list[VisionOutputs]:
        """Run the vision graph on each view of a video, or on all that it sees together."""
        video = self._manifest.video
        assert video is not None
        step = video.frames if self._manifest.joint else video.patch
        clock, last = clip.clock(video.patch), video.frames - step
        return [
            dataclasses.replace(
                self.encode_image(clip.frames[first : first + step]),
                clock=clock,
                inner=video.newline and first < last,
            )
            for first in range(0, video.frames, step)
        ]

    def decode(
        self,
        vision: VisionOutputs | Sequence[VisionOutputs],
        question: str,
        steps: int,
        grids: Sequence[Grid] | None = None,
    ) -> DecoderOutputs:
        """Run the prefill and so many decode steps, greedily; fewer where positions or a fixed cache are used up.

        Args:
            vision: The picture, or several; or all tiles of them.
            question: About them.
            steps: How many.
            grids: The tiles of each picture, where the bundle cuts them into tiles.
        """
        pictures = [vision] if isinstance(vision, VisionOutputs) else vision
        manifest = self._manifest if self._manifest.sizes else pictures[0].manifest
        prompter = Prompter(manifest, self._tokenizer)
        entering = select_tokens(
            manifest,
            self._choose,
            prompter.encode(
                question,
                image_tokens=[count for picture in pictures for count in picture.counts],
                views=[picture.view for picture in pictures if picture.view is not None],
                grids=grids,
                clock=pictures[0].clock,
            ),
            [picture.read[0] for picture in pictures],
            [picture.read[1] for picture in pictures],
            component=lambda name: functools.partial(run_graph, self._views[name]),
        )
        prompt = entering.prompt
        positions = prompter.positions(prompt, entering.kept)
        first: dict[str, Array] = {}
        logits, tokens, lengths = [], [], []

        def run(feeds: Feeds) -> Outputs:
            found = self._run(self._decoder, manifest.decoder, feeds)
            first.update(first or found)
            lengths.append([self._length(found[key]) for key, _ in self._manifest.cache.present])
            logits.append(found[LOGITS][0, -1].astype(np.float32))
            return found

        def choose(_: Outputs) -> int:
            # A picture's placeholder isn't a word: where one comes out on top, go on with the next best.
            words = np.delete(np.arange(len(logits[-1])), self._manifest.prompt.image_token_id)
            tokens.append(int(words[logits[-1][words].argmax()]))
            return tokens[-1]

        runs = min(1 + steps, prompter.room(prompt, positions))
        drive(decode_steps(self._manifest, prompt, positions, entering.features, runs, choose), run)
        inside = {name: entering.among_all(places) for name, places in _kept(first).items()}
        return DecoderOutputs(
            texts=prompt.texts,
            tokens=tokens,
            logits=np.stack(logits),
            kept=[{**_kept(said), **inside} for said in entering.outputs] or [inside] * len(pictures),
            lengths=np.array(lengths),
        )

    def _run(self, session: Any, graph: Graph, feeds: Feeds) -> dict[str, Array]:
        """Run a graph; one that takes several questions at once, on copies of this one."""
        return run_repeated(lambda given: run_graph(session, given), graph, feeds, self._manifest.rows)

    def _choose(self, feeds: Feeds) -> Outputs:
        return run_graph(self._selection, feeds)

    def _length(self, present: Array) -> int:
        if self._manifest.cache.capacity is None:
            return int(present.shape[2])
        # What has been written: a cache of fixed length began with zeros.
        return int(np.count_nonzero(present.any(axis=(0, 1, 3))))


def load_on_cpu(graph: Path, target: str, dtype: str, *, expected: Graph | None = None) -> Any:
    """Return a graph that was written for a target in ONNX Runtime's CPU provider.

    What is in bfloat16 is emulated: each operator computes in float32 and rounds, inputs and outputs are float32.

    Raises:
        MissingExtraError: onnxruntime isn't installed.
    """
    known = TARGETS.get(target)
    plain = known is None or known.compiled

    def configure(ort: Any, options: Any) -> None:
        if plain:
            # Graphs for a compiler are plain ONNX: without ORT's own fusions they are computed as they are written.
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        if dtype != "float32":
            # Weights are widened one by one, right before their use, and given back behind it: a large model's would
            # not fit otherwise.
            options.enable_cpu_mem_arena = options.enable_mem_pattern = False
            options.execution_order = ort.ExecutionOrder.PRIORITY_BASED

    source: Path | bytes = graph
    entries = {}
    if dtype == "bfloat16":
        import onnx_ir as ir

        from lmmprune.compiler.onnx_files.load_onnx import load_onnx
        from lmmprune.passes.lower.emulate_bfloat16 import EmulateBfloat16

        model = load_onnx(graph, expected=expected)
        EmulateBfloat16()(model)
        expected = None  # its inputs and outputs are float32 now
        # Weights stay where they are.
        entries = {"session.model_external_initializers_file_folder_path": str(graph.parent)}
        source = ir.to_proto(model).SerializeToString()
    # Folding would widen all of them at once, for good.
    unfolded = None if dtype == "float32" else ["ConstantFolding"]
    return cpu_session(source, entries=entries, configure=configure, disabled=unfolded, expected=expected)


def run_graph(session: Any, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run what ``load_on_cpu`` gave; return all outputs by name."""
    return run_all(session, {name: _widened(array) for name, array in feeds.items()})


def _widened(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _kept(outputs: Mapping[str, Array]) -> dict[str, Array]:
    return {name: value for name, value in outputs.items() if name.startswith(KEPT)}
