"""Before an export starts: what it will take of disk and memory, and a refusal where that isn't there."""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lmmprune.compiler.bundle.interface import VALUE_BYTES
from lmmprune.compiler.bundle.tile_grids import most_images
from lmmprune.compiler.export.decide import Decision
from lmmprune.compiler.flops.formula import TEXT_TOKENS
from lmmprune.compiler.quantize.int8_plan import WHOLE_BYTES
from lmmprune.compiler.targets import machine
from lmmprune.errors import InputError
from lmmprune.models.source import Source

_GRAPHS = 64 * 2**20
"""Graphs, tokenizer and manifest at most."""
_LIBRARIES = 900 * 2**20
"""Resident with torch, transformers and a traced graph, before the first weight is read."""
_COPIES = 3
"""Of one weight in the type of the bundle, at most: as read, converted, and the one before it that is being written."""
_MATRICES = 4
"""Of K x K numbers, K the inputs of a weight, that rounding it on samples takes."""
_TOWER = ("vision", "visual", "projector", "connector", "mlp1", "multi_modal")
"""Of names of weights that belong to the vision graph, in the families' own words."""
_SMALLEST = 64
"""Of the groups that most checkpoints have."""
_LOADED = 2
"""Times its weights that ONNX Runtime takes for a graph: as they are read, and packed for its kernels."""

NOTABLE_BYTES = 2**30
"""Smaller bundles need no announcement."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What is run while the bundle is made takes, in bytes: calibration, and what tells the loss.

    Attributes:
        disk: Of float32 graphs beside the bundle in the making; they are gone before its weights are written.
        memory: Beside the libraries.
        kept: Of what is on disk, what stays until the bundle's weights are written.
        scan: Whether the scan of ``--int8-policy auto`` is why the decoder doesn't run layer by layer.
    """

    disk: int = 0
    memory: int = 0
    kept: int = 0
    scan: bool = False

    def beside(self, other: Calibration) -> Calibration:
        """Return what both take, one after the other."""
        return Calibration(
            disk=max(self.disk + other.kept, other.disk + self.kept),
            memory=max(self.memory, other.memory),
            kept=self.kept + other.kept,
            scan=self.scan or other.scan,
        )


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What an export takes, in bytes, and what there is.

    Attributes:
        disk: Of the bundle, or of what calibrating writes where that is more.
        disk_free: On its disk; what an interrupted export wrote there counts as free.
        memory: Peak of the process.
        memory_free: What programs may still take; None where it doesn't say.
        scan: See ``Calibration``.
    """

    disk: int
    disk_free: int
    memory: int
    memory_free: int | None
    scan: bool

    def __str__(self) -> str:
        """Say it in one line."""
        free = "" if self.memory_free is None else f" ({_gib(self.memory_free)} free)"
        return (
            f"needs about {_gib(self.disk)} on disk ({_gib(self.disk_free)} free)"
            f" and {_gib(self.memory)} of memory{free}"
        )

    @property
    def notable(self) -> bool:
        """Whether it is worth a line before the export starts."""
        return self.disk >= NOTABLE_BYTES

    def check(self, destination: Path) -> None:
        """Refuse what doesn't fit.

        Raises:
            InputError: Too little disk or memory.
        """
        if self.disk > self.disk_free:
            raise InputError(
                f"the export needs about {_gib(self.disk)}, the disk of '{destination}' has {_gib(self.disk_free)}"
                " free: free some space, give another directory, or make it smaller (--int8, --int4, --dtype float16)"
            )
        if self.memory_free is not None and self.memory > self.memory_free:
            less = "leave out --int8-policy auto" if self.scan else "calibrate with fewer samples (--calib-samples)"
            raise InputError(
                f"the export needs about {_gib(self.memory)} of memory, {_gib(self.memory_free)} are free: close other"
                f" programs, or {less}"
            )


def preflight(decision: Decision, announce: Callable[[str], None]) -> None:
    """Say what a large export will take, and refuse one that doesn't fit.

    Args:
        decision: What is going to be done.
        announce: Told in one line.

    Raises:
        InputError: Too little disk or memory.
    """
    request, source, int8 = decision.request, decision.source, decision.int8
    calibration, tiles = Calibration(), most_images(decision.grids)
    if int8 is not None and decision.data:
        samples = len(decision.data.samples)
        calibration = calibration_needs(
            source,
            samples,
            scan=int8.policy == "auto",
            smooth=int8.smooth,
            decoder="decoder" in int8.parts,
            tiles=tiles,
        )
    if (int4 := decision.int4) is not None and int4.calibrated and decision.data:
        calibration = calibration.beside(rounding_needs(source, len(decision.data.samples), tiles=tiles))
    if decision.judged_on is not None:
        calibration = calibration.beside(judging_needs(source))
    required = needs(
        source,
        request.output.resolve(),
        dtype=decision.dtype,
        bits=functools.partial(weight_bits, decision),
        shared=request.share_weights,
        calibration=calibration,
    )
    if required.notable:
        announce(f"{source.name}: {required}")
    required.check(request.output)


def weight_bits(decision: Decision, name: str) -> float:
    """Return the bits that each number of a matrix takes in the bundle, scales included.

    Args:
        decision: What is going to be done.
        name: Of the checkpoint's tensor.
    """
    width = 8 * VALUE_BYTES[decision.dtype]
    if (packed := decision.source.packed.get(name)) is not None:
        # A scale and a zero point for a group, which may be cut into smaller ones.
        return packed.bits + (width + packed.bits) / min(packed.group, _SMALLEST)
    # Tables that are looked up stay in floating point.
    if "embed" in name:
        return width
    if any(word in name for word in _TOWER):
        return width if decision.int8 is None else 8
    if decision.int4 is not None:
        return 4 + width / decision.int4.group
    return width if decision.int8 is None else 8


def needs(
    source: Source,
    destination: Path,
    *,
    dtype: str,
    bits: Callable[[str], float],
    shared: bool,
    calibration: Calibration,
) -> Needs:
    """Return what an export takes, before anything is traced.

    Args:
        source: The model; of its weights only the headers are read.
        destination: Where the bundle shall be.
        dtype: Floating-point type of the bundle.
        bits: Gives what each number of a matrix takes, by its name.
        shared: Whether the bundle points into the checkpoint instead of holding weights.
        calibration: What that takes.
    """
    shapes = source.shapes
    width = VALUE_BYTES[dtype]
    # What isn't a matrix stays in floating point.
    sizes = [
        math.ceil(math.prod(shape) * (bits(name) / 8 if len(shape) > 1 else width)) for name, shape in shapes.items()
    ]
    largest = max(math.prod(shape) for shape in shapes.values())
    place = next(parent for parent in (destination, *destination.parents) if parent.exists())
    partial = destination.with_name(f".{destination.name}.partial")
    written = sum(file.stat().st_size for file in partial.glob("*.data")) if partial.is_dir() else 0
    return Needs(
        disk=max((0 if shared else sum(sizes)) + calibration.kept, calibration.disk) + _GRAPHS,
        disk_free=shutil.disk_usage(place).free + written,
        memory=_LIBRARIES + (0 if shared else _COPIES * largest * width) + calibration.memory,
        memory_free=machine.free_memory(),
        scan=calibration.scan,
    )


def calibration_needs(
    source: Source, samples: int, *, scan: bool, smooth: bool, decoder: bool = True, tiles: int = 1
) -> Calibration:
    """Return what calibrating takes.

    Args:
        source: The model.
        samples: How many are run.
        smooth: Whether SmoothQuant is on, which writes the tower a second time.
        scan: Whether blocks to keep in float are looked for, which takes the whole decoder in memory.
        decoder: Whether the decoder is calibrated, beside the tower.
        tiles: Images of a picture at most.
    """
    spec = source.decoder
    layer, table = _layer_and_table(source)
    vision, inside = _float_bytes(source)
    towers = (2 if smooth else 1) * vision
    if not decoder:
        return Calibration(disk=towers, memory=_LOADED * vision)
    if scan or inside <= WHOLE_BYTES:
        memory = _LOADED * max(vision, inside)
        return Calibration(disk=towers + inside, memory=memory, scan=inside > WHOLE_BYTES)
    # What enters the next layer of every sample, and the values that are looked at within it.
    tokens = tiles * source.vision.tokens + TEXT_TOKENS
    held = 4 * tokens * (3 * samples * spec.width + 4 * spec.mlp_width)
    return Calibration(disk=towers, memory=max(_LOADED * vision, _LOADED * 4 * max(layer, table) + held))


def rounding_needs(source: Source, samples: int, *, tiles: int = 1) -> Calibration:
    """Return what rounding the decoder's weights on samples takes, which goes layer by layer whatever its size.

    Args:
        source: The model.
        samples: How many are run.
        tiles: Images of a picture at most.
    """
    spec = source.decoder
    layer, table = _layer_and_table(source)
    vision, _ = _float_bytes(source)
    tokens = tiles * source.vision.tokens + TEXT_TOKENS
    # A layer as it was and as the runtime holds it; what is known of its widest activation, and that turned about.
    held = 4 * (_LOADED * layer + _MATRICES * spec.mlp_width**2 + tokens * 3 * samples * spec.width)
    # Four bits and a scale for a group.
    kept = math.ceil((spec.layers * layer + table) * 5 / 8)
    return Calibration(disk=vision + kept, memory=max(_LOADED * vision, held), kept=kept)


def judging_needs(source: Source) -> Calibration:
    """Return what telling the loss takes: the whole model in float32, where that is done at all."""
    vision, decoder = _float_bytes(source)
    if decoder > WHOLE_BYTES:
        return Calibration()
    return Calibration(disk=vision + decoder, memory=_LOADED * max(vision, decoder))


def _layer_and_table(source: Source) -> tuple[int, int]:
    """Return the numbers in one decoder layer, and in its table of words."""
    spec = source.decoder
    layer = 2 * spec.width * spec.head_dim * (spec.heads + spec.kv_heads) + 3 * spec.width * spec.mlp_width
    return layer, spec.vocabulary * spec.width


def _float_bytes(source: Source) -> tuple[int, int]:
    """Return the bytes of the vision graph and of the decoder, in float32."""
    layer, table = _layer_and_table(source)
    decoder = 4 * (source.decoder.layers * layer + 2 * table)
    return max(4 * sum(math.prod(shape) for shape in source.shapes.values()) - decoder, 0), decoder


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 / 10 else f"{math.ceil(size / 2**20)} MiB"
