"""The manifest of a bundle: what was exported, from what, how it was pruned and quantized, and how to run it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmmprune.errors import BundleError
from lmmprune.names import POSITION_IDS

FORMAT = 2
FILENAME = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One input or output of a graph; a dimension that isn't static is a name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True)
class Graph:
    """One ONNX file of the bundle with its signature, in the order of the graph."""

    file: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Layout of the decoder's key/value cache: per layer ``[B, kv_heads, length, head_dim]``.

    ``length_offsets[l]`` is what layer l's cache length differs by from the length of the sequence that entered the
    decoder (0 unless tokens are cut inside the decoder, negative behind a cut).

    A cache of fixed length has room for ``capacity`` tokens, in layer l for ``capacity + length_offsets[l]``, and is
    updated in place; the input ``length`` (int64 ``[1]``) says how many tokens entered the decoder before. Where the
    cache grows by concatenation, both are None.
    """

    past: tuple[tuple[str, str], ...]
    present: tuple[tuple[str, str], ...]
    kv_heads: int
    head_dim: int
    length_offsets: tuple[int, ...]
    capacity: int | None = None
    length: str | None = None

    @property
    def in_place(self) -> dict[str, str]:
        """The decoder's outputs that share the memory of an input, with that input: none if the cache grows."""
        if self.capacity is None:
            return {}
        pairs = zip(self.present, self.past, strict=True)
        return {out: into for presents, pasts in pairs for out, into in zip(presents, pasts, strict=True)}


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """One of several token counts that the run-time chooses from: K tokens, made by this head of the vision graph."""

    tokens: int
    head: Graph


@dataclass(frozen=True, kw_only=True)
class ScheduledSite:
    """One site of the pruning schedule: N visual tokens come in, K leave; so many tokens of the question go too."""

    site: str
    tokens_in: int
    tokens_out: int
    text_removed: int = 0

    @property
    def in_decoder(self) -> bool:
        """Whether the site lies in the decoder graph."""
        return self.site.startswith("llm")


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """How a question becomes tokens.

    Attributes:
        template: Text that holds ``<image>`` (``image_token``) and ``{prompt}`` once each.
        image_token: Text of the placeholder.
        image_token_id: Its id.
        eos_token_ids: Tokens that end an answer.
        special_tokens: Whether the tokenizer puts its own special tokens around; not where the template brings them.
        strip: Ends of a question that lose their white space: "both", "left", "right", or "" for none.
        origin: File of the checkpoint that the template comes from, "--template", "built-in", or "" if unknown.
    """

    template: str
    image_token: str
    image_token_id: int
    eos_token_ids: tuple[int, ...]
    special_tokens: bool = True
    strip: str = ""
    origin: str = ""


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Floating-point type, and the INT8 scheme with the source of its calibration (None: not quantized)."""

    dtype: str
    int8: str | None = None
    calibration: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class File:
    """Size and checksum of one file of the bundle."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that a run-time, a verifier or a reader needs to know of a bundle."""

    model: str
    family: str
    source: str
    weights: str  # "checkpoint" or "dummy"
    method: str | None
    parameters: Mapping[str, Any]
    schedule: tuple[ScheduledSite, ...]
    positions: str  # of the sequence that enters the decoder: "contiguous" or "original"
    llm_positions: str  # behind cuts inside the decoder: the same names
    precision: Precision
    target: str
    opset: int
    image_tokens: int  # tokens that the vision graph leaves for the decoder (K)
    requested_tokens: int  # visual tokens per decoder layer that were asked for
    average_tokens: float  # visual tokens that a decoder layer hands on, on average
    prefix: int  # tokens of every prompt before the image
    grid: tuple[int, int]  # visual tokens of a tower image, rows x columns, before pruning
    vision: Graph
    decoder: Graph
    cache: Cache
    prompt: Prompt
    max_positions: int
    flops: Mapping[str, Mapping[str, float]]  # {"vision": {"before": .., "after": ..}, "prefill": {..}}
    tools: Mapping[str, str]
    created: str
    tiles: tuple[int, int] | None = None  # rows x columns that pictures are cut into, beside an overview
    adapter: str | None = None  # directory of the LoRA adapter that was merged into the weights
    buckets: tuple[Bucket, ...] = ()  # ascending; empty: one count, made by the vision graph itself
    # transformers' generation settings that change greedy answers: {"applied": {name: value}, "ignored": {..}}
    generation: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    files: Mapping[str, File] = field(default_factory=dict)
    format: int = FORMAT

    def to_json(self) -> str:
        """Return the manifest as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @property
    def graphs(self) -> dict[str, Graph]:
        """Every graph of the bundle by the name of its component: ``vision``, ``decoder``, ``head_K``."""
        heads = {f"head_{bucket.tokens}": bucket.head for bucket in self.buckets}
        return {"vision": self.vision, "decoder": self.decoder, **heads}

    @property
    def max_tokens(self) -> int:
        """Longest sequence, prompt and answer together: the model's positions, or a fixed cache's tokens if fewer."""
        return min(self.max_positions, self.cache.capacity or self.max_positions)

    @property
    def raster(self) -> tuple[int, int]:
        """Visual tokens of the whole picture, rows and columns: those of all its tiles together."""
        rows, columns = self.tiles or (1, 1)
        return self.grid[0] * rows, self.grid[1] * columns

    @property
    def position_rows(self) -> int:
        """Rows of ``position_ids``: 1, or 3 with M-RoPE (frame, row and column)."""
        shape = next(tensor.shape for tensor in self.decoder.inputs if tensor.name == POSITION_IDS)
        return int(shape[0]) if len(shape) == 3 else 1

    @property
    def tokens_before(self) -> int:
        """Visual tokens that the unpruned model would hand to the decoder (N)."""
        return self.schedule[0].tokens_in if self.schedule else self.image_tokens

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read a manifest.

        Raises:
            BundleError: The file is missing, isn't JSON, or is of another format.
        """
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise BundleError(f"no {FILENAME} in '{path.parent}': not a bundle made by 'lmmprune export'") from error
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise BundleError(f"'{path}' can't be read ({error}): export again") from error
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            found = raw.get("format") if isinstance(raw, dict) else type(raw).__name__
            raise BundleError(f"'{path}' has format {found!r}, this version reads {FORMAT}: export again")
        try:
            return _manifest(raw)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(
                f"'{path}' is not a valid manifest ({type(error).__name__}: {error}): export again"
            ) from error


def _graph(raw: Mapping[str, Any]) -> Graph:
    def tensors(rows: Any) -> tuple[Tensor, ...]:
        return tuple(Tensor(name=r["name"], dtype=r["dtype"], shape=tuple(r["shape"])) for r in rows)

    return Graph(file=raw["file"], inputs=tensors(raw["inputs"]), outputs=tensors(raw["outputs"]))


def _manifest(raw: dict[str, Any]) -> Manifest:
    cache = raw["cache"]
    prompt = raw["prompt"]
    nested = {
        "schedule": tuple(ScheduledSite(**stage) for stage in raw["schedule"]),
        "buckets": tuple(Bucket(tokens=row["tokens"], head=_graph(row["head"])) for row in raw["buckets"]),
        "precision": Precision(**raw["precision"]),
        "grid": tuple(raw["grid"]),
        "tiles": tuple(raw["tiles"]) if raw.get("tiles") else None,
        "vision": _graph(raw["vision"]),
        "decoder": _graph(raw["decoder"]),
        "cache": Cache(
            past=tuple((k, v) for k, v in cache["past"]),
            present=tuple((k, v) for k, v in cache["present"]),
            kv_heads=cache["kv_heads"],
            head_dim=cache["head_dim"],
            length_offsets=tuple(cache["length_offsets"]),
            capacity=cache.get("capacity"),
            length=cache.get("length"),
        ),
        "prompt": Prompt(**{**prompt, "eos_token_ids": tuple(prompt["eos_token_ids"])}),
        "files": {name: File(**entry) for name, entry in raw["files"].items()},
    }
    return Manifest(**{**raw, **nested})
