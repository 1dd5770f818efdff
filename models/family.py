"""What a model family must state, as data, so that the generic code can trace, prune and run it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmmprune.models.tiles import Tiling

# Kinds of sites that every family has, and those that need each token to be one patch of one image.
OTHER_SITES = ("vision_output", "projector_output", "llm_input", "llm_layer")
ENCODER_SITES = ("vision_layer",)
GROUPED = "no method that works inside the encoder (ficoco-v, ficoco-vl, tome): a token is several patches behind it"
ONE_BY_ONE = (
    "with --tiles each tile keeps its own share, and no method cuts between the decoder's layers; without, a picture is"
    " one image of the tower's size"
)
NO_CLS = "no CLS token: the methods that need one are refused ('lmmprune methods' names them)"


@dataclass(frozen=True, kw_only=True)
class VisionSpec:
    """The vision tower as the decoder sees it.

    Attributes:
        layers: Encoder layers that lie before the features (layers behind them are dead weight).
        tokens: Visual tokens N that the decoder gets of a picture, CLS not counted.
        has_cls: Whether row 0 of the encoder is a CLS token.
        grid: Rows and columns of the tokens of one tower image; ``rows * columns * tiles + separators == N``.
        image_size: Height and width of one tower image in pixels.
        merge: Patches on each side of the block that a pixel shuffle or a merger makes a token of; 1: each token is a
            patch, and the encoder sees as many of them (else ``merge**2`` times as many).
        has_next_layer: Whether the tower has a layer behind the features, which some methods read.
        any_size: Whether the tower takes pictures of any size; the export fixes it to ``image_size``.
        tiles: Tower images per picture (T): ``pixel_values`` is ``[B*T,3,H,W]``.
        separators: Tokens among the N that are no patches (newlines): they are never candidates and always stay.
        tiling: How pictures are cut, where T > 1.
    """

    layers: int
    tokens: int
    has_cls: bool
    grid: tuple[int, int]
    image_size: tuple[int, int]
    merge: int = 1
    has_next_layer: bool = True
    any_size: bool = False
    tiles: int = 1
    separators: int = 0
    tiling: Tiling | None = None


@dataclass(frozen=True, kw_only=True)
class DecoderSpec:
    """The language model: the numbers that the cache, the FLOPs formula and the run-time need.

    Attributes:
        layers: L.
        width: C', channels of the residual stream.
        mlp_width: Channels inside the MLP.
        heads: Query heads.
        kv_heads: Key and value heads.
        head_dim: Width of a head.
        vocabulary: V.
        max_positions: Positions that the model was made for.
        rotary_rows: With M-RoPE, where a token has the numbers of its frame, row and column: by which of the three
            (0, 1, 2) each of the D/2 frequencies turns. Empty: a token has one number.
        deepstack: First layers behind which further features of the image tokens are added to the stream; they lie
            beside the token's own in ``image_features [B,K,(1+deepstack)*C']``.
    """

    layers: int
    width: int
    mlp_width: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    max_positions: int
    rotary_rows: tuple[int, ...] = ()
    deepstack: int = 0

    @property
    def position_rows(self) -> int:
        """Numbers that say where a token stands: 1, or 3 with M-RoPE."""
        return 3 if self.rotary_rows else 1


@dataclass(frozen=True, kw_only=True)
class Split:
    """How a family's processor cuts pictures into tiles, and what it writes for them.

    Attributes:
        settings: Of the image processor, that switch it on.
        rule: How a picture's grid follows from its size: ``cover`` or ``shape``, as the run-time's ``TileRule`` has it.
        tile: For each tile, with ``image_token`` once; ``{row}`` and ``{column}`` are its numbers from 1 on.
        overview: For the overview, which stands behind the tiles, with ``image_token`` once.
        before: What stands before the tiles.
        row_end: What stands behind each row of tiles.
        after: What stands behind the overview.
    """

    settings: Mapping[str, Any]
    rule: str
    tile: str
    overview: str
    before: str = ""
    row_end: str = ""
    after: str = ""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One model family: data, and the three functions that read a configuration or wrap a module for tracing.

    Attributes:
        name: Name of the family, also its ``model_type`` in config.json.
        title: What people call it.
        template: Prompt with ``<image>`` and ``{prompt}``, used where the checkpoint brings no chat template.
        early_template: Whether early revisions of its checkpoints on the hub bring none.
        image_token: Text of the image placeholder.
        picture: What the processor writes for one picture around the placeholder's repetitions, with ``image_token``
            once; empty: nothing else.
        inline: What a text writes for a picture before its question, where a chat template takes texts only; empty:
            the placeholder and a new line.
        processor: Settings that override the image processor's, so that a picture is one image of the tower's size.
        vision: Reads a ``VisionSpec`` from the transformers configuration.
        decoder: Reads a ``DecoderSpec`` from it.
        shrink: Reduces a configuration to so many decoder layers.
        vision_features: ``(model, pixel_values [B*tiles,3,H,W], False) -> [B,N,C]`` after the projector; with True also
            the hidden state of the encoder layer behind the features, whose q and k some methods read.
        prepare: Puts constants into a module that its own code can compute, but a trace can't.
        arrange: Fixes into how many rows and columns of tiles every picture is cut (None: the family's own choice) and
            returns the configuration with it and the choice; None for families that take a picture as a whole.
        split: How pictures are cut into tiles that the tower sees one by one, where ``arrange`` isn't how.
        reference: The paper.
        several: Whether a prompt may have several pictures.
        joint: Whether tokens may be chosen among all pictures of a prompt together.
        one_picture: Why it may not.
        sites: Kinds of sites that tokens can be cut at.
        tried: Ids of the hub's checkpoints whose layout, file by file, was exported and answered as transformers does.
        limits: What isn't supported and why, one sentence each, for ``lmmprune models``.
    """

    name: str
    title: str
    template: str
    image_token: str
    picture: str = ""
    inline: str = ""
    processor: Mapping[str, Any] = field(default_factory=dict)
    vision: Callable[[Any], VisionSpec]
    decoder: Callable[[Any], DecoderSpec]
    shrink: Callable[[Any, int], Any]
    vision_features: Callable[[Any, Any, bool], Any]
    prepare: Callable[[Any], None] | None = None
    arrange: Callable[[Any, tuple[int, int] | None], tuple[Any, tuple[int, int]]] | None = None
    early_template: bool = False
    split: Split | None = None
    reference: str = ""
    several: bool = False
    joint: bool = False
    one_picture: str = ""
    sites: tuple[str, ...] = OTHER_SITES
    tried: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
