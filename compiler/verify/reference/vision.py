"""From pixels to the image features that enter the decoder, one picture after the other."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from lmmprune.compiler.verify.reference import bipartite, ficoco
from lmmprune.compiler.verify.reference.chooser import Chooser
from lmmprune.compiler.verify.reference.cut import Cut, CutRefused, Seen, check, check_keep
from lmmprune.compiler.verify.reference.downsample import downsample
from lmmprune.compiler.verify.reference.encoded import Encoded, Tile
from lmmprune.compiler.verify.reference.evs import evs
from lmmprune.compiler.verify.reference.greedy import dpp
from lmmprune.compiler.verify.reference.layer_attention import LayerAttention
from lmmprune.compiler.verify.reference.prumerge import prumerge
from lmmprune.compiler.verify.reference.select import divprune, knee_count, select
from lmmprune.compiler.verify.reference.threads import one_thread
from lmmprune.compiler.verify.reference.tower import Tower
from lmmprune.compiler.verify.reference.towers import tower_of
from lmmprune.compiler.verify.reference.visionzip import visionzip


def see(model: Any, method: str, options: dict[str, Any], cuts: list[Cut], pixel_values: torch.Tensor) -> Seen:
    """Run tower and projector with these cuts.

    Args:
        model: Of a family that ``tower_of`` knows.
        method: Its vision-side rules are used.
        options: What ``rule_options`` returns; what is left out has the paper's value.
        cuts: The vision side's cuts in order of depth.
        pixel_values: [B*tiles,3,height,width].

    Raises:
        CutRefused: The method doesn't do this, or the model isn't one that it can be done on.
    """
    tower = tower_of(model, (pixel_values.shape[2], pixel_values.shape[3]))
    sites = check(method, cuts, "vision", has_cls=tower.has_cls)
    chooser = Chooser()
    with one_thread(model):
        pictures = [_see_one(tower, method, options, sites, one, chooser) for one in _pictures(tower, pixel_values)]
    kept = {site: np.array([picture[1][site] for picture in pictures], dtype=np.int64) for site in sites}
    return Seen(features=np.stack([picture[0] for picture in pictures]), kept=kept, margin=chooser.margin)


def knee(model: Any, pixel_values: torch.Tensor, chooser: Chooser | None = None) -> np.ndarray:
    """Return inflection's own number of tokens for each picture, int64 [B].

    Args:
        model: As for ``see``.
        pixel_values: [B*tiles,3,height,width].
        chooser: Takes the choices, if their margin matters.

    Raises:
        CutRefused: The encoder has no CLS token.
    """
    tower = tower_of(model, (pixel_values.shape[2], pixel_values.shape[3]))
    check("inflection", [], "vision", has_cls=tower.has_cls)
    with one_thread(model):
        pictures = [encode(tower, "inflection", {}, {}, one, Chooser())[0] for one in _pictures(tower, pixel_values)]
    chooser = chooser or Chooser()
    counts = [tower.newlines + knee_count(list(e.cls_score().values()), chooser) for e in pictures]
    return np.array(counts, dtype=np.int64)


def _pictures(tower: Tower, pixel_values: torch.Tensor) -> torch.Tensor:
    """[B*tiles,3,height,width] -> [B,tiles,3,height,width]; each tile of frames, where there are several."""
    frames = (tower.frames,) if tower.frames > 1 else ()
    return pixel_values.reshape(-1, tower.tiles, *frames, *pixel_values.shape[1:])


def _see_one(
    tower: Tower, method: str, options: dict[str, Any], sites: dict[str, int], picture: torch.Tensor, chooser: Chooser
) -> tuple[np.ndarray, dict[str, list[int]]]:
    """Return the features [K,C'] and, per site, the places of the tokens left; picture [tiles,3,height,width].

    With newlines, which always stay, everything stands in the order that it has in the whole picture.
    """
    e, kept = encode(tower, method, options, sites, picture, chooser)
    features, places = e.x, list(range(e.n))
    if (keep := sites.get("vision_output")) is not None:
        check_keep(keep - tower.newlines, e.n, "vision_output")
        features, places = cut_output(method, options, e, keep - tower.newlines, chooser)
        kept["vision_output"] = places
    projected = tower.project(torch.from_numpy(features)).numpy()
    if tower.pool is not None:
        projected = tower.pool(torch.from_numpy(projected)).numpy()
        places = list(range(len(projected)))
    if (keep := sites.get("projector_output")) is not None:
        keep -= tower.newlines
        check_keep(keep, len(projected), "projector_output")
        changed = functools.partial(evs, views=tower.tiles)
        rules: dict[str, Callable[[np.ndarray, int, Chooser], list[int]]]
        rules = {"divprune": divprune, "dpp": dpp, "evs": changed}
        places = rules[method](projected[:, : tower.compared], keep, chooser) if keep < len(projected) else places
        projected, kept["projector_output"] = projected[places], places
    if tower.packing is None or tower.newline is None:
        return projected, kept
    patches = tower.packing.places
    tokens = sorted(
        [(patches[place] if place >= 0 else -1, row) for row, place in enumerate(places)]
        + [(place, len(places)) for place in tower.packing.newlines]
    )
    table = np.concatenate([projected, tower.newline.numpy()[None]])
    return table[[row for _, row in tokens]], {site: [place for place, _ in tokens] for site in kept}


def cut_output(
    method: str, options: dict[str, Any], e: Encoded, keep: int, chooser: Chooser
) -> tuple[np.ndarray, list[int]]:
    """Cut at the vision output; return the features [K,C] and their patches. A cut that removes nothing is none."""
    if keep == e.n:
        return e.x, list(range(e.n))
    if method == "aim":
        return bipartite.aim_rounds(chooser, e.x, e.keys(), keep)
    if method == "downsample":
        return downsample(e, keep)
    if method == "visionzip":
        return visionzip(e, keep, chooser, **options)
    if method == "prumerge":
        return prumerge(e, keep, chooser, None, **options)
    if method == "prumerge+":
        return prumerge(e, keep, chooser, **{"important_fraction": 0.25, **options})
    places = select(method, options, e, keep, chooser)
    return e.x[places], places


def encode(
    tower: Tower, method: str, options: dict[str, Any], sites: dict[str, int], picture: torch.Tensor, chooser: Chooser
) -> tuple[Encoded, dict[str, list[int]]]:
    """Run the encoder up to the feature layer.

    Args:
        tower: The model's vision side.
        method: Name.
        options: Of its rule.
        sites: Of all cuts of the vision side; those inside the encoder are done here.
        picture: [tiles,3,height,width].
        chooser: Takes the choices.

    Returns:
        The encoded picture and, per cut, the patches left.

    Raises:
        CutRefused: There is no such layer, or the tokens need every patch behind it.
    """
    inside = any(site.startswith("vision_layer_") for site in sites)
    if inside and tower.merge > 1:
        raise CutRefused(
            f"a token is made of {tower.merge} x {tower.merge} patches: none may be cut inside the encoder"
        )
    if inside and tower.tiles > 1:
        raise CutRefused(f"a picture is made of {tower.tiles} tiles: nothing may be cut inside the encoder")
    found = [encode_tile(tower, method, options, sites, tile, chooser) for tile in picture]
    tiles, kept = [tile for tile, _ in found], found[0][1]
    squares = tower.squares(len(tiles[0].y) - tower.has_cls)
    columns = tower.columns // tower.merge
    return Encoded(tiles=tiles, has_cls=tower.has_cls, squares=squares, columns=columns), kept


def encode_tile(
    tower: Tower, method: str, options: dict[str, Any], sites: dict[str, int], picture: torch.Tensor, chooser: Chooser
) -> tuple[Tile, dict[str, list[int]]]:
    """Run the encoder up to the feature layer on one image [3,height,width]; arguments as for ``encode``."""
    cls = tower.has_cls
    x = tower.embed(picture)
    patches = list(range(len(x) - cls))
    sizes = [1.0] * len(patches)
    looks: list[LayerAttention] = []
    kept: dict[str, list[int]] = {}
    for number, layer in enumerate(tower.layers[: tower.depth]):
        mixed, look = tower.attend(layer, x, [1.0] * cls + sizes)
        looks.append(look)
        x = x + mixed
        site = f"vision_layer_{number}"
        if site in sites:
            check_keep(sites[site], len(patches), site)
            if sites[site] < len(patches):
                visual, places, sizes = cut_layer(
                    method, options, look, x[cls:].numpy(), patches, sizes, sites[site], chooser, tower
                )
                patches = [patches[place] for place in places]
                x = torch.cat([x[:cls], torch.from_numpy(visual)])
            kept[site] = list(patches)
        x = x + tower.feed(layer, x)
    # A method may have its own order inside the encoder; behind it is the picture's.
    raster = sorted(range(len(patches)), key=patches.__getitem__)
    x = torch.cat([x[:cls], x[cls:][raster]])
    if kept:
        *_, last = kept
        kept[last] = sorted(patches)
    for number in reversed(range(len(looks))):
        if number in tower.windowed:
            looks[number] = looks[number + 1]
    behind = None
    if method.startswith("prumerge") and tower.depth < len(tower.layers):
        _, behind = tower.attend(tower.layers[tower.depth], x, [1.0] * len(x))
    missing = [site for site in sites if site.startswith("vision_layer_") and site not in kept]
    if missing:
        raise CutRefused(f"the encoder has no {missing}")
    return Tile(y=tower.finish(x).numpy(), looks=looks, behind=behind), kept


def cut_layer(
    method: str,
    options: dict[str, Any],
    look: LayerAttention,
    x: np.ndarray,
    patches: list[int],
    sizes: list[float],
    keep: int,
    chooser: Chooser,
    tower: Tower,
) -> tuple[np.ndarray, list[int], list[float]]:
    """Cut inside a layer.

    Args:
        method: Name.
        options: Of its rule.
        look: The layer's attention, of CLS and n visual tokens.
        x: [n,C], the visual tokens.
        patches: [n], the original patch of each.
        sizes: [n], how many patches each stands for.
        keep: K.
        chooser: Takes the choices.
        tower: The model's vision side.

    Returns:
        The tokens left [K,C], their places among the n, and their sizes.
    """
    cls = int(tower.has_cls)
    keys, n = look.mean_keys[cls:], len(patches)
    if method == "tome":
        edges, order = bipartite.tome_edges(chooser, keys, keep, has_cls=bool(cls))
        merged = bipartite.merge_into(x, sizes, edges, order).astype(x.dtype)
        return merged, order, bipartite.merge_sizes(sizes, edges, order)
    score = {name: options[name] for name in ("score",) if name in options}
    shares = {name: options[name] for name in ("lambda_",) if name in options}
    s, scale = ficoco.vision_redundancy(look, cls=tower.has_cls, **score, **shares)
    penalty = {name: options[name] for name in ("window", "coefficient") if name in options}
    s = ficoco.penalize(chooser, s, scale, patches, tower.columns, **penalty)
    gone = ficoco.dropped(chooser, s, scale, keep)
    kept = [place for place in range(n) if place not in gone]
    left, eps = [sizes[place] for place in kept], options.get("eps", 0.998)
    if ficoco.drops(options.get("targets", "auto"), keep, eps):
        return x[kept], kept, left
    correlation = ficoco.vision_correlation(look, kept, gone, cls=tower.has_cls, **score)
    return ficoco.merge(x, kept, ficoco.weights(chooser, correlation, eps)), kept, left
