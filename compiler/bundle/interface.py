"""What it takes to run the graphs of a bundle: signatures, the prompt, positions, the cache, and what is kept where."""

from __future__ import annotations

from dataclasses import dataclass

from lmmprune.compiler.bundle.tile_grids import TileGrids
from lmmprune.compiler.bundle.video import Video
from lmmprune.names import POSITION_IDS

SELECTION = "selection"
"""The component that chooses visual tokens between vision graph and decoder."""

VALUE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Size of a number, by the manifest's names of types."""


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

    A cache that is updated in place has an input ``length`` (int64 ``[1]``), which says how many tokens entered the
    decoder before. It has room for ``capacity`` tokens, in layer l for ``capacity + length_offsets[l]``; with None the
    run-time chooses. Where the cache grows by concatenation, both are None.
    """

    past: tuple[tuple[str, str], ...]
    present: tuple[tuple[str, str], ...]
    kv_heads: int
    head_dim: int
    length_offsets: tuple[int, ...]
    capacity: int | None = None
    length: str | None = None

    @property
    def carried(self) -> dict[str, str]:
        """The decoder's outputs that are inputs of its next run, with that input."""
        pairs = zip(self.present, self.past, strict=True)
        return {out: into for presents, pasts in pairs for out, into in zip(presents, pasts, strict=True)}

    @property
    def in_place(self) -> dict[str, str]:
        """The decoder's outputs that share the memory of an input, with that input: none if the cache grows."""
        return {} if self.length is None else self.carried


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """One of several token counts that the run-time chooses from: K tokens, made by this graph behind the encoder."""

    tokens: int
    graph: Graph

    @property
    def component(self) -> str:
        """The name of its graph among the bundle's: ``bucket_K``."""
        return f"bucket_{self.tokens}"


@dataclass(frozen=True, kw_only=True)
class ScheduledSite:
    """One site of the pruning schedule: N visual tokens come in, K leave; so many tokens of the question go too.

    ``kept`` is the graph's output with the kept places, int64 ``[1,K]``; None where the site removes nothing.
    """

    site: str
    tokens_in: int
    tokens_out: int
    text_removed: int = 0
    kept: str | None = None

    @property
    def in_decoder(self) -> bool:
        """Whether the site lies behind the merge of image and text: in the decoder graph or in the selection's."""
        return self.site.startswith("llm")

    @property
    def before_layers(self) -> bool:
        """Whether the site lies in front of all layers of the decoder."""
        return self.site == "llm_input_0"


@dataclass(frozen=True, kw_only=True)
class View:
    """One of several sizes of pictures, or grids of tiles, behind one decoder: its vision graph and what that keeps."""

    graph: Graph
    grid: tuple[int, int]
    tiles: tuple[int, int] | None
    schedule: tuple[ScheduledSite, ...]
    image_tokens: int
    selection: Graph | None = None

    @property
    def component(self) -> str:
        """The name of its graph among the bundle's: ``vision`` for the largest, ``vision_448x672`` for others."""
        return self.graph.file.removesuffix(".onnx")

    @property
    def tokens_before(self) -> int:
        """Visual tokens of a picture of it before pruning."""
        return self.schedule[0].tokens_in if self.schedule else self.image_tokens

    @property
    def graphs(self) -> dict[str, Graph]:
        """Its graphs by their components."""
        return {graph.file.removesuffix(".onnx"): graph for graph in (self.graph, self.selection) if graph is not None}

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width of a tower image."""
        _, _, height, width = self.graph.inputs[0].shape
        return int(height), int(width)

    @property
    def name(self) -> str:
        """What people call it: height x width in pixels, or rows x columns of tiles."""
        return "x".join(map(str, self.tiles or self.pixels))


@dataclass(frozen=True, kw_only=True)
class Batch:
    """How a bundle answers several questions at once.

    Attributes:
        rows: B, questions that the graphs take together; the selection takes one.
        padding: Place in the decoder's sequence where a shorter question's row is filled up to the longest: behind the
            first token, or behind the picture where cuts in the decoder need its place. Never 0: a token of the padding
            sees the one before it.
    """

    rows: int
    padding: int


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
        turn: What stands behind a question in a conversation that goes on: text with ``{answer}`` and, behind it,
            ``{prompt}`` for the next question, once each. "" where the template takes one question.
        answer_strip: Ends of such an answer that lose their white space, as ``strip``.
        unit: What the template writes for its picture, in it once, where a prompt may have several: it stands there
            once for each. "" where a prompt has one.
        inline: What stands for a picture whose place a question marks itself, with ``image_token`` once; "" likewise.
        bare: The template of such a question: ``{prompt}`` once and no picture; "" likewise.
        pictured: As ``turn``, where the next question brings pictures: with ``unit`` once; "" where it can't.
    """

    template: str
    image_token: str
    image_token_id: int
    eos_token_ids: tuple[int, ...]
    special_tokens: bool = True
    strip: str = ""
    origin: str = ""
    turn: str = ""
    answer_strip: str = ""
    unit: str = ""
    inline: str = ""
    bare: str = ""
    pictured: str = ""


@dataclass(frozen=True, kw_only=True)
class Interface:
    """All that a prompt, a cache and a loop over the graphs need to know of them."""

    prompt: Prompt
    positions: str  # of the sequence that enters the decoder: "contiguous" or "original"
    llm_positions: str  # behind cuts inside the decoder: the same names
    max_positions: int
    schedule: tuple[ScheduledSite, ...]
    image_tokens: int  # visual tokens of a picture that enter the decoder (K)
    grid: tuple[int, int]  # visual tokens of a tower image, rows x columns, before pruning
    vision: Graph
    decoder: Graph
    cache: Cache
    prefix: int  # tokens of every prompt before the first image
    images: int = 1  # pictures that a prompt may have at most; the decoder takes so many times K features
    # Whether the vision graph sees all pictures of a prompt as one, of whose tokens K stay; else each keeps K.
    joint: bool = False
    tiles: tuple[int, int] | None = None  # rows x columns that pictures are cut into, beside an overview
    # All sizes or grids that pictures may have, in the order in which ties are won; the one with the most tokens is
    # what the fields above say, too. Empty: there is one.
    sizes: tuple[View, ...] = ()
    # Grids, one for each picture; the vision graph sees one tile, of which K tokens stay. None: none to choose from.
    tile_grids: TileGrids | None = None
    buckets: tuple[Bucket, ...] = ()  # ascending; empty: one count, made by the vision graph itself
    # Chooses, once per prompt, among the vision graph's features; None: all of them enter the decoder.
    selection: Graph | None = None
    # Whether cuts in the decoder leave runs behind a prompt as they are up to ``prefix + image_tokens`` tokens.
    long_turns: bool = False
    # Output of the vision graph, or of a bucket's, with the place of each feature before pruning; None: all are there.
    kept: str | None = None
    # A prompt is about a video, whose views are its ``images``, exactly so many; None: about pictures.
    video: Video | None = None
    batch: Batch | None = None  # None: one question at a time

    @property
    def rows(self) -> int:
        """Questions that vision graph and decoder take at once (B)."""
        return 1 if self.batch is None else self.batch.rows

    @property
    def graphs(self) -> dict[str, Graph]:
        """Every graph of the bundle by its component: ``vision``, ``vision_HxW``, ``decoder``, ``bucket_K``, ..."""
        beside = {name: graph for view in self.sizes for name, graph in view.graphs.items()}
        behind = {bucket.component: bucket.graph for bucket in self.buckets}
        between = {} if self.selection is None else {SELECTION: self.selection}
        return {"vision": self.vision, **beside, "decoder": self.decoder, **behind, **between}

    @property
    def vision_tokens(self) -> int:
        """Visual tokens that the vision graph leaves; fewer enter the decoder where there is a selection."""
        if self.selection is None:
            return self.image_tokens
        return next((stage.tokens_in for stage in self.schedule if stage.before_layers), self.image_tokens)

    @property
    def feature_rows(self) -> int:
        """Rows of the decoder's ``image_features``; those behind a prompt's own pictures are read by nothing."""
        return self.vision_runs * self.image_tokens

    @property
    def vision_runs(self) -> int:
        """How often the vision graph runs for a prompt, at most."""
        return 1 if self.joint else self.images * self.most_tiles

    @property
    def most_tiles(self) -> int:
        """Runs of the vision graph for a picture at most: each sees one tile, or all of the picture."""
        return 1 if self.tile_grids is None else self.tile_grids.most

    @property
    def whose_tokens(self) -> str:
        """What the counts of visual tokens are of, to be said behind them; nothing where that is one picture."""
        if self.video is not None:
            return f" of {self.video.views} views together" if self.joint else f" of each of {self.video.views} views"
        pictures = "" if self.images == 1 else f" of each of 1 to {self.images} pictures"
        if self.tile_grids is not None:
            return f" of each of 1 to {self.most_tiles} tiles{pictures}"
        return f" of {self.images} pictures together" if self.joint else pictures

    @property
    def picture_tokens(self) -> int:
        """Visual tokens of one picture before pruning."""
        return self.tokens_before // self.images if self.joint else self.tokens_before

    def tokens_of(self, picture: int) -> int:
        """Return the same of one picture of a prompt by its place: of a video's views the last may have a newline."""
        if self.video is None or not self.video.newline:
            return self.picture_tokens
        last = picture == self.video.views - 1
        return self.picture_tokens + last if self.joint else self.picture_tokens - (not last)

    @property
    def decoder_sites(self) -> tuple[ScheduledSite, ...]:
        """The sites in the decoder graph itself."""
        return tuple(s for s in self.schedule if s.in_decoder and not (s.before_layers and self.selection is not None))

    @property
    def longest_run(self) -> int | None:
        """Tokens that the decoder takes in one run behind a prompt; None: as many as there are.

        A longer one would be taken for a prompt; older graphs move the rows behind the fewest that a site keeps.
        """
        if not self.decoder_sites:
            return None
        fewest = min(site.tokens_out for site in self.decoder_sites)
        return self.prefix + (self.image_tokens if self.long_turns else fewest)

    @property
    def max_tokens(self) -> int:
        """Longest sequence, prompt and answer together: the model's positions, or a fixed cache's tokens if fewer."""
        return min(self.max_positions, self.cache.capacity or self.max_positions)

    @property
    def raster(self) -> tuple[int, int]:
        """Visual tokens of the whole picture, rows and columns: those of all its tiles together."""
        rows, columns = self.tiles or (1, 1)
        return self.grid[0] * rows, self.grid[1] * columns

    def cache_bytes(self, entered: int) -> int:
        """Return the size of an answer's keys and values when so many tokens have entered the decoder, in all rows."""
        types = {tensor.name: tensor.dtype for tensor in self.decoder.inputs}
        row = self.rows * 2 * self.cache.kv_heads * self.cache.head_dim * VALUE_BYTES[types[self.cache.past[0][0]]]
        return sum(max(0, entered + offset) * row for offset in self.cache.length_offsets)

    @property
    def position_rows(self) -> int:
        """Rows of ``position_ids``: 1, or 3 with M-RoPE (frame, row and column)."""
        shape = next(tensor.shape for tensor in self.decoder.inputs if tensor.name == POSITION_IDS)
        return int(shape[0]) if len(shape) == 3 else 1

    @property
    def tokens_before(self) -> int:
        """Visual tokens that the unpruned model would hand to the decoder (N): of a picture, or of all if ``joint``."""
        return self.schedule[0].tokens_in if self.schedule else self.image_tokens
