"""Prompts with several pictures: each chosen from by itself, all of them in one sequence."""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import numpy as np
import torch

from lmmprune.compiler.verify.reference.chooser import Chooser
from lmmprune.compiler.verify.reference.cut import Cut, CutRefused, Said, check
from lmmprune.compiler.verify.reference.decoder import embed, run
from lmmprune.compiler.verify.reference.decoder_cut import Cutter
from lmmprune.compiler.verify.reference.layer_attention import rms_norm
from lmmprune.compiler.verify.reference.sequence import Position, Token, sequence
from lmmprune.compiler.verify.reference.threads import one_thread

_SITE = "llm_input_0"


class Picture(NamedTuple):
    """What left the vision side of one picture."""

    features: torch.Tensor  # [K,C']
    kept: np.ndarray | None  # [K], the original patch of each; None: every patch in order
    patches: int = 0  # N of this picture, where pictures differ in it; 0: as of all
    grid: tuple[int, int] | None = None  # its rows and columns, likewise
    keep: int = 0  # how many a cut leaves of it, likewise


def say_of_several(
    model: Any,
    method: str,
    options: dict[str, Any],
    cuts: list[Cut],
    pictures: list[Picture],
    texts: list[list[int]],
    *,
    prefix: int,
    positions: dict[str, str],
    patches: int,
    steps: int,
    forced: list[int],
    grid: tuple[int, int] | None = None,
    interval: float | None = None,
) -> list[Said]:
    """Follow 1 + steps given tokens behind ``texts[0], picture 0, texts[1], picture 1, ..., texts[-1]``.

    A cut before layer 0 is made picture by picture: one sees its own tokens, and the text of the whole prompt of which
    ``prefix`` tokens stand before it.

    Args:
        model: As for ``say``.
        method: As for ``say``.
        options: As for ``say``.
        cuts: None, or the one at llm_input_0.
        pictures: In the prompt's order.
        texts: Token ids between them, one list more than there are pictures.
        prefix: Tokens before the picture in the sequence that a cut is made in.
        positions: As for ``say``.
        patches: N, the patches of a picture.
        steps: As for ``say``.
        forced: The 1 + steps tokens.
        grid: As for ``say``.
        interval: Numbers from one picture to the next, where all lie in one grid, as views of a video; None: each has
            its own.

    Returns:
        For each picture what it keeps, and the logits of the prompt, the same for all.

    Raises:
        CutRefused: The method cuts between the layers.
    """
    sites = check(method, cuts, "llm")
    if set(sites) - {_SITE}:
        raise CutRefused(f"several pictures and cuts at {sorted(sites)}")
    if len(texts) != len(pictures) + 1 or len(forced) != 1 + steps:
        raise CutRefused(f"{len(pictures)} pictures, {len(texts)} texts, {len(forced)} tokens to follow")
    last_norm = functools.partial(rms_norm, model.get_decoder().norm)
    text = list(itertools.chain(*texts))
    chosen: list[Picture] = []
    found: list[dict[str, np.ndarray]] = []
    margins = []

    def cutter(sites: dict[str, int], chooser: Chooser) -> Cutter:
        return Cutter(method, options, sites, positions["llm"], frozenset(), chooser, last_norm)

    with one_thread(model):
        for picture in pictures:
            features, kept, *_ = picture
            chooser = Chooser()
            own = cutter({site: picture.keep or keep for site, keep in sites.items()}, chooser)
            if sites:
                # Numbers don't matter before layer 0.
                asked = sequence(len(features), None, text[:prefix], text[prefix:], [], "contiguous", patches)
                own.cut(_SITE, asked, embed(model, asked, features), None)
                left = own.kept[_SITE]
                features, kept = features[left], left if kept is None else kept[left]
            chosen.append(Picture(features, kept, *picture[2:]))
            found.append(own.kept)
            margins.append(chooser.margin)
        tokens = number(chosen, texts, forced[:-1], positions["vision"], patches, grid, interval)
        every = torch.cat([features for features, *_ in chosen])
        logits = run(model, tokens, every, cutter({}, Chooser()), 1 + steps).numpy()
    return [
        Said(kept=kept, logits=logits, tokens=forced, margin=margin)
        for kept, margin in zip(found, margins, strict=True)
    ]


def number(
    pictures: list[Picture],
    texts: list[list[int]],
    generated: list[int],
    policy: str,
    patches: int,
    grid: tuple[int, int] | None,
    interval: float | None = None,
) -> list[Token]:
    """Return the numbered sequence: text counts on; a picture takes as many numbers as the policy says."""
    tokens: list[Token] = []
    following, row = 0, 0

    def at(place: int) -> Position:
        return place if grid is None else (place, place, place)

    for piece in range(len(texts)):
        for word in texts[piece] + (generated if piece == len(pictures) else []):
            tokens.append(Token("tail", following, at(following), word))
            following += 1
        if piece == len(pictures):
            break
        features, kept, own, shape, _ = pictures[piece]
        patches, grid = own or patches, shape or grid
        spots = range(len(features)) if kept is None else [max(int(place), 0) for place in kept]
        for order, spot in enumerate(spots):
            if grid is not None:
                # In float32, as transformers has seconds.
                frame = 0 if interval is None else int(np.float32(piece) * np.float32(interval))
                place: Position = (following + frame, following + spot // grid[1], following + spot % grid[1])
            else:
                place = following + (spot if policy == "original" else order)
            tokens.append(Token("image", row, place))
            row += 1
        if grid is not None:
            following += max(grid) if interval is None or piece == len(pictures) - 1 else 0
        else:
            following += patches if policy == "original" else len(features)
    return tokens
