"""What a method's schedule knows of a model, whoever reads it off one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The numbers of a model that a method's schedule depends on.

    Attributes:
        tokens: N, visual tokens that the decoder gets.
        grid: Rows and columns of those of one tower image.
        encoder_layers: V, layers before the features.
        decoder_layers: L.
        has_cls: Whether the encoder has a CLS token.
        merge: Patches on each side of the block that makes a token, behind the encoder; 1: a token is a patch.
        has_next_layer: Whether the encoder has a layer behind the features.
        tiles: Tower images per picture.
        separators: Tokens among the N that are no patches; they always stay.
    """

    tokens: int
    grid: tuple[int, int]
    encoder_layers: int
    decoder_layers: int
    has_cls: bool
    merge: int = 1
    has_next_layer: bool = True
    tiles: int = 1
    separators: int = 0
