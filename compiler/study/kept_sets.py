"""Which patches a bundle keeps of every picture, and how far two bundles agree on them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmmprune.compiler.data.questions import Question
from lmmprune.compiler.runtime.image_features import views_of
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.compiler.study.write_file import write_bytes

# Site -> int32 [pictures, K]: the patch in whose place each token is; -1: of none.
Kept = Mapping[str, NDArray[np.int32]]


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Intersection over union of two kept sets at one site, 0..1: mean and lowest over the pictures."""

    site: str
    mean: float
    lowest: float
    pictures: int


def collect_kept(runtime: Runtime, questions: Sequence[Question]) -> Kept:
    """Return what leaves each site that removes visual tokens, for every picture with its first question.

    Raises:
        InputError: A picture or a prompt can't be used.
    """
    first: dict[str, Question] = {}
    for question in questions:
        first.setdefault(question.picture, question)
    in_decoder = any(stage.in_decoder for stage in runtime.bundle.manifest.schedule)
    rows: dict[str, list[NDArray[np.int64]]] = {}
    for question in first.values():
        visual = runtime.encode_image(question.load())
        sites = dict(visual.sites)
        if in_decoder:
            encoded = runtime.prompter.encode(question.prompt, image_tokens=visual.tokens, views=views_of([visual]))
            sites |= runtime.prefill_sites(visual, encoded)
        for site, tokens in sites.items():
            rows.setdefault(site, []).append(tokens.kept)
    return {site: np.stack(kept).astype(np.int32) for site, kept in rows.items()}


def save_kept(kept: Kept, file: Path) -> None:
    """Write the sets as one compressed NumPy archive, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **dict(kept))  # type: ignore[arg-type]  # numpy takes a flag of that name as well
    write_bytes(file, buffer.getvalue())


def load_kept(file: Path) -> Kept:
    """Read what ``save_kept`` wrote; no file, no sites."""
    if not file.is_file():
        return {}
    with np.load(file) as archive:
        return {site: archive[site] for site in archive.files}


def overlaps(one: Kept, other: Kept) -> tuple[Overlap, ...]:
    """Compare two bundles site by site, in the data's order; sites that only one of them tells of are left out."""
    found = []
    for site, rows in one.items():
        if site in other:
            shares = [_iou(a, b) for a, b in zip(rows, other[site], strict=True)]
            found.append(
                Overlap(site=site, mean=float(np.mean(shares)), lowest=float(min(shares)), pictures=len(shares))
            )
    return tuple(found)


def _iou(one: NDArray[np.int32], other: NDArray[np.int32]) -> float:
    a, b = set(one[one >= 0].tolist()), set(other[other >= 0].tolist())
    return len(a & b) / len(a | b) if a | b else 1.0
