"""VisionZip at the vision output: dominant patches, the CLS token, and contextual targets that gather the rest."""

from __future__ import annotations

import numpy as np

from lmmprune.compiler.verify.reference.bipartite import cosine
from lmmprune.compiler.verify.reference.chooser import Chooser, round_half_up
from lmmprune.compiler.verify.reference.encoded import Encoded


def target_places(rest: int, targets: int) -> list[int]:
    """Places of the targets among the ``rest`` patches that aren't dominant."""
    if targets == 0:
        return []
    step = max(1, rest // targets)
    return [step * i for i in range(targets)]


def visionzip(
    e: Encoded, keep: int, chooser: Chooser, *, dominant_fraction: float = 54 / 64
) -> tuple[np.ndarray, list[int]]:
    """Return the features [K,C] and their places, -1 for a tile's CLS token; tokens of several patches rule it out."""
    cls = len(e.tiles) if e.keeps_cls else 0
    d = max(1, cls, round_half_up(dominant_fraction * keep))
    if keep >= 2:
        d = max(cls, min(d, keep - 1))
    attention = [tile.looks[-1].attention.sum(axis=0) for tile in e.tiles]
    score = e.scores([one[0] if e.has_cls else one.sum(axis=0, dtype=np.float64) for one in attention])
    dominant = sorted(chooser.largest(score, d - cls))
    rest = [j for j in range(e.n) if j not in dominant]
    targets = [rest[place] for place in target_places(len(rest), keep - d)]

    keys = e.keys()
    joined: dict[int, list[int]] = {target: [] for target in targets}
    if targets:
        for i in rest:
            if i not in targets:
                near = {target: cosine(keys[i], keys[target]) for target in targets}
                joined[chooser.largest(near, 1, scale=1.0)[0]].append(i)
    x = e.x
    rows = [tile.y[0] for tile in e.tiles] if cls else []
    rows += [x[j] for j in dominant]
    for target in targets:
        members = joined[target]
        rows.append(x[target] + sum(x[i] for i in members) / len(members) if members else x[target])
    return np.stack(rows), [-1] * cls + dominant + targets
