"""What is known of the answers that an export costs, in one line, and what measures the rest."""

from __future__ import annotations

import shlex
from pathlib import Path

from lmmprune.compiler.bundle.manifest import Manifest


def loss_line(manifest: Manifest, output: Path, pictures: Path | None) -> str | None:
    """Return what was measured, or the command that measures it; None where there is nothing to lose.

    Args:
        manifest: Of the new bundle.
        output: Where it is.
        pictures: Those of ``--calib``; None: none were given.
    """
    if manifest.weights == "dummy" or (manifest.method is None and not manifest.precision.quantized):
        return None
    data = "PICTURES" if pictures is None else shlex.quote(str(pictures))
    compare = f"lmmprune compare UNPRUNED {shlex.quote(str(output))} --data {data}"
    if (loss := manifest.loss) is None:
        return f"loss: not measured; {compare}"
    return (
        f"loss on {loss.samples} of your pictures: KL {loss.kl:.3g} nats per token, {loss.same_first} of {loss.samples}"
        f" answers begin alike; more: {compare}"
    )
