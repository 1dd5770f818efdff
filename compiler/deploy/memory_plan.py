"""What a bundle will take of a board's memory: weights, cache, values between layers, scratch, the system itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lmmprune.compiler.backends.pool import roomy
from lmmprune.compiler.build.engine_spec import WORKSPACE
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.bundle.interface import SELECTION, VALUE_BYTES
from lmmprune.compiler.deploy.activations import activation_bytes
from lmmprune.compiler.targets.boards import BOARDS, Board
from lmmprune.compiler.targets.target import Target
from lmmprune.errors import InputError, TargetError

GIB = 2.0**30
# Ubuntu without a desktop, CUDA's context and TensorRT's libraries (believed: about 1 GiB was read in users' reports).
SYSTEM = int(1.5 * GIB)
NEW_TOKENS = 512
_LITTLE = 2**28  # a workspace that still leaves most kernels to choose from (believed)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One row: what it is, its bytes, and how they were counted."""

    name: str
    bytes: int
    how: str


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """The parts for a longest prompt of ``prompt`` and a sequence of ``length`` tokens."""

    prompt: int
    length: int
    parts: tuple[Part, ...]

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(part.bytes for part in self.parts)

    def boards(self, arch: str | None) -> tuple[Board, ...]:
        """Return the boards of an architecture that hold it."""
        return tuple(board for board in BOARDS if board.arch == arch and board.memory >= self.total)

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as plain JSON types."""
        return {**dataclasses.asdict(self), "total": self.total}


def plan_memory(
    bundle: Bundle,
    target: Target,
    *,
    max_prompt: int | None = None,
    workspace: int = WORKSPACE,
    system: int = SYSTEM,
) -> MemoryPlan:
    """Count what running a bundle takes where processor and GPU share the memory, so that weights are there once.

    Args:
        bundle: The bundle.
        target: What it will run on.
        max_prompt: Longest prompt in tokens; the answer may be 512 tokens longer. None: the model's
            positions, or a fixed cache's tokens where those are fewer.
        workspace: Scratch memory in bytes that a kernel may take.
        system: Bytes that the board keeps for itself.

    Raises:
        InputError: ``max_prompt`` doesn't suit the model.
        MissingExtraError: onnx-ir isn't installed.
    """
    manifest = bundle.manifest
    limit, image = manifest.max_tokens, manifest.feature_rows
    prompt = limit if max_prompt is None else max_prompt
    if not image < prompt <= limit:
        raise InputError(f"--max-prompt {prompt} must be more than the image's {image} tokens and at most {limit}")
    length = min(limit, prompt + NEW_TOKENS)
    fixed = manifest.cache.capacity
    cache = manifest.cache_bytes(fixed or length)
    values = max(
        *(
            # A selection sees one whole picture with the prompt; the others have no sequence.
            activation_bytes(bundle.file(graph.file), seq=prompt + manifest.vision_tokens - manifest.image_tokens)
            for name, graph in manifest.graphs.items()
            if name != "decoder"
        ),
        activation_bytes(bundle.decoder, seq=prompt, image_tokens=image),
    )
    copies = 1 if manifest.cache.in_place else 2
    # Engines share no weights: the one that selects has an embedding table of its own.
    lent = manifest.files.get(f"{SELECTION}.onnx.data") if target.compiled else None
    # So has each size of pictures.
    parts = [name.split("_")[0] for view in manifest.sizes for name in view.graphs if "_" in name]
    each = [manifest.files.get(f"{part}.onnx.data") for part in parts] if target.compiled else []
    own = sum(weights.bytes for weights in each if weights is not None)
    return MemoryPlan(
        prompt=prompt,
        length=length,
        parts=(
            Part(
                name="weights",
                bytes=bundle.bytes + (lent.bytes if lent else 0) + own,
                how="files of the graphs; shared memory holds them once",
            ),
            Part(
                name="key/value cache",
                # The run-time's buffers have room to grow.
                bytes=cache if fixed else copies * roomy(cache),
                how=f"{fixed or length} tokens, "
                + ("in place" if copies == 1 else "a step's past and present side by side"),
            ),
            Part(name="between layers", bytes=values, how=f"prompt of {prompt} tokens, before the compiler fuses"),
            Part(name="workspace", bytes=workspace, how="limit given to the builder"),
            Part(name="system", bytes=system, how="Ubuntu, CUDA and TensorRT (an assumption)"),
        ),
    )


def check_fits(
    plan: MemoryPlan,
    ram: int,
    bundle: Bundle,
    target: Target,
    *,
    workspace: int = WORKSPACE,
    system: int = SYSTEM,
) -> None:
    """Refuse a board that is too small.

    Raises:
        TargetError: It is; the message holds the numbers and what would help.
    """
    if plan.total <= ram:
        return
    sizes = ", ".join(f"{part.name} {part.bytes / GIB:.2f}" for part in plan.parts)
    helps = "; ".join(_remedies(plan, ram, bundle, target, workspace, system)) or "a board with more memory"
    raise TargetError(
        f"'{bundle.path.name}' takes {plan.total / GIB:.2f} GiB ({sizes}), the board has {ram / GIB:.2f}: {helps}"
    )


def _remedies(plan: MemoryPlan, ram: int, bundle: Bundle, target: Target, workspace: int, system: int) -> Iterator[str]:
    manifest = bundle.manifest
    fixed = sum(part.bytes for part in plan.parts if part.name in ("weights", "system"))
    prompt = plan.prompt // 2
    while fixed < ram and prompt > manifest.feature_rows + 32:
        smaller = plan_memory(bundle, target, max_prompt=prompt, workspace=workspace, system=system)
        if smaller.total <= ram:
            yield f"--max-prompt {prompt} takes {smaller.total / GIB:.2f} GiB"
            break
        prompt //= 2
    if workspace > _LITTLE and plan.total - workspace + _LITTLE <= ram:
        yield f"--workspace {_LITTLE // 2**20}MiB takes {(plan.total - workspace + _LITTLE) / GIB:.2f} GiB"
    weights = plan.parts[0].bytes
    item = VALUE_BYTES[manifest.precision.dtype]
    if not manifest.precision.quantized and weights > plan.total / 4:
        # Embeddings stay as they are; this is the least that the rest can take.
        for option, bits in (("--int8", 8), ("--int4", 4)):
            least = weights / item * bits / 8
            yield f"exporting with {option} leaves {least / GIB:.2f} GiB of weights or little more"
    elif manifest.precision.smaller == 4 and weights > plan.total / 4:
        yield f"exporting with --int4 leaves {weights / 2 / GIB:.2f} GiB of weights or little more"
    if larger := [board for board in BOARDS if board.memory >= plan.total]:
        smallest = min(larger, key=lambda board: board.memory)
        yield f"a board with {smallest.memory / GIB:.0f} GiB"
