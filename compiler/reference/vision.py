"""From pixels to the image features that enter the decoder, one picture after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lmmprune.compiler.reference import bipartite, ficoco
from lmmprune.compiler.reference.chooser import Chooser
from lmmprune.compiler.reference.cut import Cut, Refused, Seen, check, check_keep
from lmmprune.compiler.reference.encoded import Encoded, Tile
from lmmprune.compiler.reference.look import Look, vision_attention
from lmmprune.compiler.reference.packing import packing
from lmmprune.compiler.reference.prumerge import prumerge
from lmmprune.compiler.reference.select import cls_similarity, divprune, knee_count, select
from lmmprune.compiler.reference.threads import one_thread
from lmmprune.compiler.reference.visionzip import visionzip


def has_cls(model: Any) -> bool:
    """Return whether the tower puts a CLS token before its patches; LLaVA must then drop it ('default'), else not.

    Raises:
        Refused: It does the other.
    """
    cls = hasattr(model.model.vision_tower.embeddings, "class_embedding")
    if model.config.vision_feature_select_strategy != ("default" if cls else "full"):
        raise Refused("the CLS token would be a feature, or a patch be dropped as CLS")
    return cls


def depth(model: Any) -> int:
    """Return V, the encoder layers before the features; hidden[0] are the embeddings."""
    layer: int = model.config.vision_feature_layer
    return layer if layer >= 0 else len(model.model.vision_tower.encoder.layers) + 1 + layer


def see(model: Any, method: str, options: dict[str, Any], cuts: list[Cut], pixel_values: torch.Tensor) -> Seen:
    """Run tower and projector with these cuts.

    Args:
        model: One of the LLaVA families with a CLIP or SigLIP tower.
        method: Its vision-side rules are used.
        options: What ``rule_options`` returns; what is left out has the paper's value.
        cuts: The vision side's cuts in order of depth.
        pixel_values: [B*tiles,3,height,width].

    Raises:
        Refused: The method doesn't do this, or the model isn't one that it can be done on.
    """
    sites = check(method, cuts, "vision", has_cls=has_cls(model))
    chooser = Chooser()
    with one_thread(model):
        pictures = [
            _see_one(model, method, options, sites, picture, chooser) for picture in pictures_of(model, pixel_values)
        ]
    kept = {site: np.array([picture[1][site] for picture in pictures], dtype=np.int64) for site in sites}
    return Seen(features=np.stack([picture[0] for picture in pictures]), kept=kept, margin=chooser.margin)


def knee(model: Any, pixel_values: torch.Tensor, chooser: Chooser | None = None) -> np.ndarray:
    """Return inflection's own number of tokens for each picture, int64 [B].

    Args:
        model: As for ``see``.
        pixel_values: [B*tiles,3,height,width].
        chooser: Takes the choices, if their margin matters.

    Raises:
        Refused: The encoder has no CLS token.
    """
    check("inflection", [], "vision", has_cls=has_cls(model))
    with one_thread(model):
        pictures = [encode(model, "inflection", {}, {}, one, Chooser())[0] for one in pictures_of(model, pixel_values)]
    chooser = chooser or Chooser()
    newlines = len(packing(model).newlines)
    return np.array(
        [newlines + knee_count(list(cls_similarity(e).values()), chooser) for e in pictures], dtype=np.int64
    )


def pictures_of(model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    """[B*tiles,3,height,width] -> [B,tiles,3,height,width]."""
    return pixel_values.reshape(-1, packing(model).tiles, *pixel_values.shape[1:])


def _see_one(
    model: Any, method: str, options: dict[str, Any], sites: dict[str, int], picture: torch.Tensor, chooser: Chooser
) -> tuple[np.ndarray, dict[str, list[int]]]:
    """Return the features [K,C'] and, per site, the places of the tokens left; picture [tiles,3,height,width].

    With newlines, which always stay, everything stands in the order that it has in the whole picture.
    """
    e, kept = encode(model, method, options, sites, picture, chooser)
    pack = packing(model)
    features, places = e.x, list(range(e.n))
    newlines = len(pack.newlines)
    if (keep := sites.get("vision_output")) is not None:
        check_keep(keep - newlines, e.n, "vision_output")
        features, places = cut_output(method, options, e, keep - newlines, chooser)
        kept["vision_output"] = places
    projected = model.model.multi_modal_projector(torch.from_numpy(features)).numpy()
    if (keep := sites.get("projector_output")) is not None:
        check_keep(keep - newlines, e.n, "projector_output")
        places = divprune(projected, keep - newlines, chooser) if keep - newlines < e.n else places
        projected, kept["projector_output"] = projected[places], places
    if not newlines:
        return projected, kept
    tokens = sorted(
        [(pack.places[place] if place >= 0 else -1, row) for row, place in enumerate(places)]
        + [(place, len(places)) for place in pack.newlines]
    )
    table = np.concatenate([projected, model.model.image_newline.numpy()[None]])
    woven = [place for place, _ in tokens]
    return table[[row for _, row in tokens]], dict.fromkeys(kept, woven)


def cut_output(
    method: str, options: dict[str, Any], e: Encoded, keep: int, chooser: Chooser
) -> tuple[np.ndarray, list[int]]:
    """Cut at the vision output; return the features [K,C] and their patches. A cut that removes nothing is none."""
    if keep == e.n:
        return e.x, list(range(e.n))
    if method == "aim":
        return bipartite.aim_rounds(chooser, e.x, e.keys(), keep)
    if method == "visionzip":
        return visionzip(e, keep, chooser, **options)
    if method == "prumerge":
        return prumerge(e, keep, chooser, None, **options)
    if method == "prumerge+":
        return prumerge(e, keep, chooser, **{"important_fraction": 0.25, **options})
    places = select(method, options, e, keep, chooser)
    return e.x[places], places


def encode(
    model: Any, method: str, options: dict[str, Any], sites: dict[str, int], picture: torch.Tensor, chooser: Chooser
) -> tuple[Encoded, dict[str, list[int]]]:
    """Run the encoder up to the feature layer.

    Args:
        model: The model.
        method: Name.
        options: Of its rule.
        sites: Of all cuts of the vision side; those inside the encoder are done here.
        picture: [tiles,3,height,width].
        chooser: Takes the choices.

    Returns:
        The encoded picture and, per cut, the patches left.

    Raises:
        Refused: There is no such layer, or it sees several tiles.
    """
    pack = packing(model)
    inside = [site for site in sites if site.startswith("vision_layer_")]
    if inside and pack.tiles > 1:
        raise Refused(f"no cut at {inside} with {pack.tiles} tiles")
    found = [encode_tile(model, method, options, sites, tile, chooser) for tile in picture]
    kept = found[0][1]
    where = pack.patches if not kept else [(0, place) for place in range(len(found[0][0].y) - has_cls(model))]
    return Encoded(tiles=[tile for tile, _ in found], where=where, has_cls=has_cls(model)), kept


def encode_tile(
    model: Any, method: str, options: dict[str, Any], sites: dict[str, int], picture: torch.Tensor, chooser: Chooser
) -> tuple[Tile, dict[str, list[int]]]:
    """Run the encoder up to the feature layer on one image [3,height,width]; arguments as for ``encode``."""
    tower = model.model.vision_tower
    cls = has_cls(model)
    x = tower.embeddings(picture[None])[0]
    if hasattr(tower, "pre_layrnorm"):
        x = tower.pre_layrnorm(x)
    patches = list(range(len(x) - cls))
    sizes = [1.0] * len(patches)
    looks: list[Look] = []
    kept: dict[str, list[int]] = {}
    for number, layer in enumerate(tower.encoder.layers[: depth(model)]):
        mixed, look = vision_attention(layer.self_attn, layer.layer_norm1(x), [1.0] * cls + sizes)
        looks.append(look)
        x = x + mixed
        site = f"vision_layer_{number}"
        if site in sites:
            check_keep(sites[site], len(patches), site)
            if sites[site] < len(patches):
                visual, places, sizes = cut_layer(
                    method, options, look, x[cls:].numpy(), patches, sizes, sites[site], chooser, model
                )
                patches = [patches[place] for place in places]
                x = torch.cat([x[:cls], torch.from_numpy(visual)])
            kept[site] = list(patches)
        x = x + layer.mlp(layer.layer_norm2(x))
    behind = None
    if method.startswith("prumerge") and depth(model) < len(tower.encoder.layers):
        layer = tower.encoder.layers[depth(model)]
        _, behind = vision_attention(layer.self_attn, layer.layer_norm1(x), [1.0] * len(x))
    missing = [site for site in sites if site.startswith("vision_layer_") and site not in kept]
    if missing:
        raise Refused(f"the encoder has no {missing}")
    return Tile(y=x.numpy(), looks=looks, behind=behind), kept


def cut_layer(
    method: str,
    options: dict[str, Any],
    look: Look,
    x: np.ndarray,
    patches: list[int],
    sizes: list[float],
    keep: int,
    chooser: Chooser,
    model: Any,
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
        model: The model.

    Returns:
        The tokens left [K,C], their places among the n, and their sizes.
    """
    cls = int(has_cls(model))
    keys, n = look.mean_keys[cls:], len(patches)
    if method == "tome":
        edges = bipartite.tome_edges(chooser, keys, keep, has_cls=bool(cls))
        merged = bipartite.merge_into(x, sizes, edges).astype(x.dtype)
        return merged, [place for place in range(n) if place not in edges], bipartite.merge_sizes(sizes, edges)
    logits = look.mean_logits[cls:, cls:]
    cls_row = look.mean_logits[0, cls:] if cls else None
    vision = model.config.vision_config
    s = ficoco.vision_redundancy(logits, cls_row, keys, options.get("lambda_", 0.35))
    columns = vision.image_size // vision.patch_size
    penalty = {name: options[name] for name in ("window", "coefficient") if name in options}
    s = ficoco.penalize(chooser, s, patches, columns, **penalty)
    gone = ficoco.dropped(chooser, s, keep)
    kept = [place for place in range(n) if place not in gone]
    w = ficoco.weights(chooser, ficoco.vision_correlation(logits, kept, gone), options.get("eps", 0.998))
    return ficoco.merge(x, kept, w), kept, [sizes[place] for place in kept]
