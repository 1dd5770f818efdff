"""From a model to a bundle, and from another exporter's graph to a pruned one: the extra 'export' must be installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmmprune.api.schedule import schedule_of
from lmmprune.compiler.export.request import Report, Request
from lmmprune.compiler.export.values import Int4, Int8, Keep, Ratio, Tiles, Tokens
from lmmprune.defaults import METHOD, TOWER_METHOD
from lmmprune.errors import require
from lmmprune.progress import Progress, silent

if TYPE_CHECKING:
    from lmmprune.compiler.rewrite.rewrite import RewriteReport
    from lmmprune.passes.methods import Method

File = str | PathLike[str]


def export(
    model: File,
    out: File,
    *,
    tokens: Tokens | None = None,
    schedule: Mapping[str, int] | File | None = None,
    method: str | Method = METHOD,
    options: Mapping[str, Any] | None = None,
    method_file: File | None = None,
    int8: Int8 | None = None,
    int4: Int4 | None = None,
    target: str = "ort-cpu",
    dtype: str | None = None,
    calibration: File | None = None,
    calibration_samples: int = 32,
    judge: bool = True,
    positions: str | None = None,
    static_cache: int | None = None,
    weights: str = "auto",
    adapter: File | None = None,
    layers: int | None = None,
    image_size: tuple[int, int] | Sequence[tuple[int, int]] | None = None,
    tiles: Tiles | None = None,
    images: int = 1,
    frames: int | None = None,
    joint: bool = False,
    batch: int = 1,
    template: str | None = None,
    share_weights: bool = False,
    resume: bool = False,
    cache: bool = True,
    force: bool = False,
    progress: Progress = silent,
    announce: Callable[[str], None] = lambda line: None,
) -> Report:
    """Export a model: prune visual tokens inside its graphs, optionally quantize, and write a bundle.

    Args:
        model: Alias such as ``tiny-llava``, hub id, or local directory.
        out: Directory for the bundle.
        tokens: ``Ratio(removed)``, ``Keep(count)``, ``Auto(percentile)`` (the method counts on pictures) or
            ``Buckets(ratios)`` (each picture takes one of several counts); None prunes nothing.
        schedule: In place of ``tokens``, site -> visual tokens that leave it, as in ``{"llm_input_1": 100}``, or a JSON
            file of that, for a method that can cut at any decoder layer.
        method: Name of the selection method (see ``list_methods``), or a ``Method`` of your own.
        options: Hyper-parameter -> value, where the method is a name.
        method_file: Python file that defines the method by this name.
        int8: How to quantize to INT8; None: not at all.
        int4: In place of ``int8``, how to store the decoder's weights in four bits; None: they aren't.
        target: Where it will run (see ``list_targets``).
        dtype: ``float32``, ``float16`` or ``bfloat16``; None: the target's.
        calibration: Pictures (directory) or image and prompt pairs (JSON Lines) for INT8's ranges and a method's
            counts; None: what fits the model.
        calibration_samples: Samples at most.
        judge: Whether a few of ``calibration``'s pictures tell what is lost (``manifest.loss``).
        positions: ``contiguous`` or ``original``; None: the method's.
        static_cache: Tokens that a key/value cache of fixed length has room for; None: it grows.
        weights: ``auto``, or ``dummy`` for synthetic ones.
        adapter: LoRA directory of PEFT, merged into the weights.
        layers: Keep only so many decoder layers, with ``dummy`` weights.
        image_size: Height and width in pixels, where the tower takes any, or several such pairs, of which each picture
            takes the nearest; None: its own.
        tiles: Rows and columns of tiles that pictures are cut into; several such pairs, or ``"all"`` that its processor
            may choose, and each picture takes one.
        images: Pictures that a prompt may have at most; fewer cost less.
        frames: Of the video that a prompt is about; None: it is about pictures.
        joint: Choose among the tokens of all of them together; a prompt then has exactly so many.
        batch: Questions that are answered at once, each about its own picture; fewer at run time cost as many.
        template: Chat template (jinja, a file or text), or text with ``<image>`` and ``{prompt}``.
        share_weights: Link the checkpoint's own files instead of copying weights.
        resume: Go on with an interrupted export; leave it if interrupted again.
        cache: Keep traces of architectures, and take those of earlier exports.
        force: Replace a bundle that is there.
        progress: Called while it runs.
        announce: Told in one line what a large export will take, before it starts.

    Returns:
        The manifest, seconds by step, peak memory in bytes, and warnings.

    Raises:
        LmmpruneError: Anything that you can mend, in one line; nothing is left behind then.

    Example::

        report = lmmprune.export("tiny-llava", "out", tokens=lmmprune.Ratio(0.5), int8=lmmprune.Int8())
        print(report.manifest.tokens_before, report.manifest.image_tokens)
    """
    require("onnx_ir", "export")
    from lmmprune.compiler.export.export import export as run

    request = Request(
        model=str(model),
        output=Path(out),
        tokens=tokens if schedule is None else schedule_of(schedule, tokens),
        method=method,
        options=_texts(options),
        method_file=_path(method_file),
        int8=int8,
        int4=int4,
        target=target,
        dtype=dtype,
        calibration=_path(calibration),
        calibration_samples=calibration_samples,
        judge=judge,
        positions=positions,
        static_cache=static_cache,
        weights=weights,
        adapter=_path(adapter),
        layers=layers,
        image_size=None if image_size is None else tuple(image_size),  # type: ignore[arg-type]  # one pair or several
        tiles=tiles,
        images=images,
        frames=frames,
        joint=joint,
        batch=batch,
        template=template,
        share_weights=share_weights,
        resume=resume,
        cache=cache,
        force=force,
    )
    return run(request, progress, announce=announce)


def rewrite(
    source: File,
    out: File,
    *,
    tokens: Ratio | Keep | None = None,
    method: str | Method = TOWER_METHOD,
    options: Mapping[str, Any] | None = None,
    method_file: File | None = None,
    features: str | None = None,
    layer: int | None = None,
    grid: tuple[int, int] | None = None,
    batch: int | None = None,
    image_size: tuple[int, int] | None = None,
    dtype: str | None = None,
    target: str = "ort-cpu",
    force: bool = False,
    progress: Progress = silent,
) -> RewriteReport:
    """Prune the vision tower in an ONNX file of another exporter: CLIP, SigLIP or another ViT, opset 13 or newer.

    Args:
        source: The ONNX file.
        out: The file to write.
        tokens: ``Ratio(removed)`` or ``Keep(count)``; None prunes nothing.
        method: Name of the selection method, or a ``Method`` of your own; it cuts at the tower's output.
        options: Hyper-parameter -> value, where the method is a name.
        method_file: Python file that defines the method by this name.
        features: Output that holds the features; None: the last one with tokens.
        layer: Hidden state for the output, such as -2 as in LLaVA; None: what the output holds.
        grid: Rows and columns of patches; None: those of the patch embedding.
        batch: Pictures per call, where the file leaves that open; None: 1.
        image_size: Height and width in pixels, where the file leaves them open.
        dtype: ``float32``, ``float16`` or ``bfloat16``; None: the file's.
        target: Where it will run.
        force: Replace a file that is there.
        progress: Called while it runs.

    Raises:
        LmmpruneError: Anything that you can mend, in one line; nothing is written then.

    Example::

        lmmprune.rewrite("clip.onnx", "pruned.onnx", tokens=lmmprune.Ratio(0.5), image_size=(336, 336), layer=-2)
    """
    require("onnx_ir", "export")
    from lmmprune.compiler.rewrite.rewrite import Request as Wanted
    from lmmprune.compiler.rewrite.rewrite import rewrite as run

    wanted = Wanted(
        source=Path(source),
        output=Path(out),
        method=method,
        options=_texts(options),
        method_file=_path(method_file),
        ratio=tokens.removed if isinstance(tokens, Ratio) else None,
        keep=tokens.tokens if isinstance(tokens, Keep) else None,
        features=features,
        layer=layer,
        grid=grid,
        batch=batch,
        image_size=image_size,
        dtype=dtype,
        target=target,
        force=force,
    )
    return run(wanted, progress)


def _texts(options: Mapping[str, Any] | None) -> dict[str, str]:
    """Return hyper-parameters as ``--set`` takes them."""

    def text(value: Any) -> str:
        return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)

    return {name: text(value) for name, value in (options or {}).items()}


def _path(path: File | None) -> Path | None:
    return None if path is None else Path(path)
