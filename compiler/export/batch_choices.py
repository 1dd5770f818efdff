"""What ``--batch`` means for one model and one method, and what doesn't go with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmmprune.compiler.bundle.manifest_rules import MOST_ROWS
from lmmprune.compiler.export.request import Request
from lmmprune.compiler.export.values import Buckets
from lmmprune.errors import InputError

if TYPE_CHECKING:
    from lmmprune.compiler.quantize.int8_plan import Int8Plan
    from lmmprune.models.source import Source
    from lmmprune.passes.methods import Method
    from lmmprune.passes.reduce.stage import Stage


def check_batch(
    request: Request,
    source: Source,
    method: Method,
    stages: Sequence[Stage],
    positions: str,
    int8: Int8Plan | None,
) -> None:
    """Refuse several questions at once where the model, the method or another option takes one.

    Args:
        request: What the user asked for.
        source: The model.
        method: The method.
        stages: Where tokens are cut; none where pictures will decide.
        positions: How tokens are numbered behind cuts.
        int8: How graphs are quantized; None: they aren't.
    """
    batch = request.batch
    if not 1 <= batch <= MOST_ROWS:
        raise InputError(f"--batch {batch}: expected 1 to {MOST_ROWS} questions at once")
    if batch == 1:
        return
    others = {
        # Views of a video are counted as pictures by now.
        "--frames": request.frames is not None,
        "--images": request.images > 1,
        "several --image-size": len(request.image_sizes) > 1,
        "--buckets": isinstance(request.tokens, Buckets),
        "--int8-dynamic": int8 is not None and int8.scheme.endswith("-dynamic"),
    }
    why = {"--int8-dynamic": ": one range of all rows would let an answer depend on its neighbours"}
    if other := next((name for name, given in others.items() if given), None):
        raise InputError(f"--batch and {other} don't go together{why.get(other, ' yet')}: leave one out")
    if source.tiles is not None or request.tiles is not None:
        said = f"{source.family.title} cuts a picture into tiles here, which takes one at a time"
        hint = ": leave --tiles out" if source.family.arrange is None else ""
        raise InputError(f"--batch {batch}: {said}{hint}")
    inside = next((one for one in stages if one.site.in_decoder and not one.site.before_layers), None)
    if inside is None:
        return
    if positions != "original":
        raise InputError(
            f"--batch {batch}: method '{method.name}' cuts at {inside.site}, behind which rows of unequal length can't"
            " be numbered anew: leave --positions contiguous out"
        )
    if any(one.prune_text for one in stages):
        said = "prune_text drops words, and rows of a batch are padded among them"
        raise InputError(f"--batch {batch}: {said}: leave it 0")
