"""How many tokens leave a site: what a schedule may ask for, and what a rewritten graph is held to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from lmmprune.names import IMAGE_FEATURES
from lmmprune.passes.find.sites import PROJECTOR_OUTPUT, Site
from lmmprune.passes.graph.refusals import Broken, Refused
from lmmprune.passes.graph.shapes import static_shape
from lmmprune.passes.reduce.stage import Stage


def tokens_name(site: Site) -> str:
    """Return the name of the visual tokens that leave a site."""
    return f"lmmprune.tokens.{site}"


def check_counts(stages: Sequence[Stage], tokens: int, *, least: int = 1) -> None:
    """Check that counts fall from site to site and never below ``least``.

    Raises:
        Refused: They don't.
    """
    for stage in stages:
        if not least <= stage.keep <= tokens:
            raise Refused(
                f"can't keep {stage.keep} of {tokens} visual tokens at {stage.site}: expected {least}..{tokens}"
            )
        tokens = stage.keep


def check_sites(model: ir.Model, lengths: Mapping[Site, int]) -> None:
    """Compare the tokens of every rewritten site with the schedule.

    Raises:
        Broken: They differ.
    """
    values = {value.name: value for node in model.graph for value in node.outputs}
    for site, length in lengths.items():
        # Behind the projector the tokens are the graph's output.
        value = values.get(IMAGE_FEATURES if site == PROJECTOR_OUTPUT else tokens_name(site))
        if value is None:
            raise Broken(f"{site} isn't in the graph, the schedule says that {length} tokens leave it")
        if (found := static_shape(value)[1]) != length:
            raise Broken(f"{site} leaves {found} tokens, the schedule says {length}")


def removing(stages: Sequence[Stage], tokens: int) -> dict[Site, int]:
    """Return the counts of the stages that remove something; the others write nothing."""
    found = {}
    for stage in stages:
        if stage.keep < tokens:
            found[stage.site] = stage.keep
        tokens = stage.keep
    return found
