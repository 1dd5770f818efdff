"""Prune a vision tower that another exporter wrote: from an ONNX file to an ONNX file."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmmprune.compiler.export.choices import dtype_of
from lmmprune.compiler.onnx_files.write_graph import check_writable, write_graph
from lmmprune.compiler.targets import targets
from lmmprune.defaults import TOWER_METHOD
from lmmprune.errors import InputError, require
from lmmprune.progress import Progress, silent, step

if TYPE_CHECKING:
    import onnx_ir as ir

    from lmmprune.facts import Facts
    from lmmprune.passes.foreign.find_features import Features
    from lmmprune.passes.methods import Method
    from lmmprune.passes.reduce.stage import Stage

# A tower alone has no decoder. Methods ask for its depth all the same; what cuts there is refused whatever it is.
_NO_DECODER = 32


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for; see ``lmmprune rewrite --help``."""

    source: Path
    output: Path
    method: str | Method = TOWER_METHOD
    options: Mapping[str, str] = field(default_factory=dict)
    method_file: Path | None = None
    ratio: float | None = None
    keep: int | None = None
    features: str | None = None
    layer: int | None = None
    grid: tuple[int, int] | None = None
    batch: int | None = None
    image_size: tuple[int, int] | None = None
    dtype: str | None = None
    target: str = "ort-cpu"
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class RewriteReport:
    """What was done.

    Attributes:
        features: Output that holds the features, and its shape after pruning.
        layer: Encoder layers before them, and how many the file has.
        has_cls: Whether row 0 of that output is CLS.
        grid: Patches, rows and columns.
        method: Name; None if nothing was removed.
        parameters: Its hyper-parameters.
        schedule: (site, tokens in, tokens out).
        dropped: Outputs that are gone -> why.
        flops: Before and after.
        nodes: In the file, in canonical form, after pruning.
        opset: Of the file, and of what was written.
        dtype: Floating-point type of the weights in the file, and of everything in what was written.
        picture_dtype: Of the file's input.
        target: What it was written for.
        bytes: Written.
        seconds: It took.
    """

    features: tuple[str, tuple[int, ...]]
    layer: tuple[int, int]
    has_cls: bool
    grid: tuple[int, int]
    method: str | None
    parameters: Mapping[str, Any]
    schedule: tuple[tuple[str, int, int], ...]
    dropped: Mapping[str, str]
    flops: tuple[int, int]
    nodes: tuple[int, int, int]
    opset: tuple[int, int]
    dtype: tuple[str, str]
    picture_dtype: str
    target: str
    bytes: int
    seconds: float

    @property
    def tokens(self) -> tuple[int, int]:
        """Visual tokens before and after."""
        count = self.grid[0] * self.grid[1]
        return count, self.schedule[-1][2] if self.schedule else count


def rewrite(request: Request, progress: Progress = silent) -> RewriteReport:
    """Raise a foreign graph to canonical form, prune it there, and write it for a target.

    Args:
        request: What to do.
        progress: Called with the step's name, what is done of it and how much there is.

    Raises:
        LmmpruneError: Anything that the user can mend; nothing is written then.
    """
    require("onnx_ir", "export")
    require("onnxscript", "export")
    from lmmprune.compiler.lower.lower import lower
    from lmmprune.compiler.rewrite.canonicalize_foreign import canonicalize_foreign
    from lmmprune.facts import Facts
    from lmmprune.passes.foreign.find_features import find_features, find_grid
    from lmmprune.passes.foreign.hand_out_tokens import HandOutTokens
    from lmmprune.passes.graph.count_flops import count_flops
    from lmmprune.passes.graph.shapes import static_shape
    from lmmprune.passes.lower.cast_float import CastFloat
    from lmmprune.passes.methods import get_method, keep_count

    started = time.perf_counter()
    target = targets.resolve(request.target)
    method = get_method(request.method, dict(request.options), file=request.method_file).at_output_only()
    if not request.source.is_file():
        raise InputError(f"'{request.source}' doesn't exist: give an ONNX file")
    if request.output.resolve() == request.source.resolve():
        raise InputError(f"'{request.output}' is the graph that is read: give another name")
    check_writable(request.output, force=request.force)

    with step(progress, "raise"):
        raised = canonicalize_foreign(request.source, batch=request.batch, image_size=request.image_size)
    dtype, model = dtype_of(target, request.dtype or raised.dtype), raised.model
    grid = request.grid or find_grid(model)
    if request.layer is not None and request.features is None:
        HandOutTokens(layer=request.layer, grid=grid)(model)
    found = find_features(model, grid=grid, output=request.features, layer=request.layer)
    name, canonical = str(found.output.name), sum(1 for _ in model.graph)
    facts = Facts(
        tokens=grid[0] * grid[1],
        grid=grid,
        encoder_layers=found.depth,
        decoder_layers=_NO_DECODER,
        has_cls=found.has_cls,
    )
    stages = _plan(method, facts, keep_count(facts.tokens, ratio=request.ratio, keep=request.keep))
    before = count_flops(model)

    touched = bool(stages) or found.moved
    if touched:
        with step(progress, "prune"):
            prune_tower(model, method, stages, found)
    after = count_flops(model)
    shape = next(static_shape(value) for value in model.graph.outputs if value.name == name)
    nodes = (raised.nodes, canonical, sum(1 for _ in model.graph))
    if dtype != "float32":
        with step(progress, "cast"):
            CastFloat(dtype=dtype)(model)
    with step(progress, "lower"):
        lower(model, target)
    written = write_graph(
        model,
        request.output,
        force=request.force,
        progress=lambda done, of: progress("write", done, of),
    )
    schedule, tokens = [], facts.tokens
    for stage in stages:
        schedule.append((str(stage.site), tokens, stage.keep))
        tokens = stage.keep
    return RewriteReport(
        features=(name, shape),
        layer=(found.depth, len(found.layers)),
        has_cls=found.has_cls and shape[1] == tokens + 1,
        grid=grid,
        method=method.name if stages else None,
        parameters=method.parameters if stages else {},
        schedule=tuple(schedule),
        dropped={**raised.copies, **(found.dropped if touched else {})},
        flops=(before, after),
        nodes=nodes,
        opset=(raised.opset, target.opset),
        dtype=(raised.dtype, dtype),
        picture_dtype=raised.picture_dtype,
        target=target.name,
        bytes=written,
        seconds=time.perf_counter() - started,
    )


def prune_tower(model: ir.Model, method: Method, stages: Sequence[Stage], found: Features) -> None:
    """Apply the stages of a method to a tower in canonical form, whose output keeps its name and form.

    Args:
        model: Changed in place.
        method: The method.
        stages: Its stages on this tower.
        found: Where the features are.

    Raises:
        GraphRefusal: A pass refuses it.
    """
    from lmmprune.passes.foreign.expose_patches import ExposePatches, JoinTokens
    from lmmprune.passes.lower.freeze_shapes import FreezeShapes
    from lmmprune.passes.reduce.reduce_vision import ReduceVision

    name, layer = str(found.output.name), found.depth if found.moved else None
    ExposePatches(output=name, layer=layer, grid=found.grid, next_layer=method.next_layer and bool(stages))(model)
    ReduceVision(method=method.name, stages=stages, grid=found.grid)(model)
    JoinTokens(output=name)(model)
    FreezeShapes()(model)


def _plan(method: Method, facts: Facts, keep: int) -> tuple[Stage, ...]:
    """Return the stages of a method in a tower that has no decoder behind it.

    Raises:
        InputError: It cuts in the decoder.
    """
    if keep == facts.tokens:
        return ()
    # With one token less first: no schedule that a decoder would need can be out of reach there.
    for count in (facts.tokens - 1, keep):
        stages = method.plan(facts, count)
        inside = [stage for stage in stages if stage.site.in_decoder]
        if not inside:
            continue
        raise InputError(
            f"method '{method.name}' cuts in the decoder ({inside[0].site}), where the question is, and this graph is a"
            " vision tower alone: use a method that cuts in the encoder or at its output, or 'lmmprune export'"
        )
    return stages
