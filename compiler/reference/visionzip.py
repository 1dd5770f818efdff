"""VisionZip at the vision output: dominant patches, the CLS token, and contextual targets that gather the rest."""

from __future__ import annotations

import numpy as np

from lmmprune.compiler.reference.bipartite import cosine
from lmmprune.compiler.reference.chooser import Chooser, round_half_up
from lmmprune.compiler.reference.encoded import Encoded


def target_places(rest: int, targets: int) -> list[int]:
    """Places of the targets among the ``rest`` patches that aren't dominant."""
    if targets == 0:
        return []
    step = max(1, rest // targets)
    return [step * i for i in range(targets)]


def visionzip(
    e: Encoded, keep: int, chooser: Chooser, *, dominant_fraction: float = 54 / 64
) -> tuple[np.ndarray, list[int]]:
    """Return the features [K,C] and their places, -1 for the CLS token."""
    d = max(1, round_half_up(dominant_fraction * keep))
    if keep >= 2:
        d = min(d, keep - 1)
    attention = e.looks[-1].attention.sum(axis=0)
    if e.has_cls:
        score = {j: float(attention[0, j + 1]) for j in range(e.n)}
        dominant = sorted(chooser.largest(score, d - 1))
    else:
        score = {j: sum(float(attention[i, j]) for i in range(e.n)) for j in range(e.n)}
        dominant = sorted(chooser.largest(score, d))
    rest = [j for j in range(e.n) if j not in dominant]
    targets = [rest[place] for place in target_places(len(rest), keep - d)]

    keys = e.keys()
    joined: dict[int, list[int]] = {target: [] for target in targets}
    if targets:
        for i in rest:
            if i not in targets:
                near = {target: cosine(keys[i], keys[target]) for target in targets}
                joined[chooser.largest(near, 1, scale=1.0)[0]].append(i)
    rows = [e.y[0]] if e.has_cls else []
    rows += [e.x[j] for j in dominant]
    for target in targets:
        members = joined[target]
        rows.append(e.x[target] + sum(e.x[i] for i in members) / len(members) if members else e.x[target])
    return np.stack(rows), [-1] * e.has_cls + dominant + targets
