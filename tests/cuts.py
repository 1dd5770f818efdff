"""Cuts for the tests of the passes: rules of fixed places, and the two passes on small graphs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from decoders import IMAGE, SmallDecoder
from selecting import Selecting
from towers import Tower

from lmmprune.passes.find.sites import Site
from lmmprune.passes.methods import get_method
from lmmprune.passes.reduce.filters import constant_places, last_query
from lmmprune.passes.reduce.reduce_decoder import ReduceDecoder
from lmmprune.passes.reduce.reduce_vision import ReduceVision
from lmmprune.passes.reduce.rules import Outcome, Reduce, ReductionRule
from lmmprune.passes.reduce.stage import Stage

SPECIAL = (0, 1, 2, IMAGE)
FASTV = Reduce(filter=last_query)
# What most tests of a decoder cut: four layers, and a picture of eight tokens behind two words.
DECODER = SmallDecoder(layers=4, heads=4, kv_heads=2)
TOKENS, PREFIX = 8, 2


def picking(places: Sequence[int]) -> ReductionRule:
    """Return a rule that keeps the same places of every picture."""
    return lambda at, keep: Outcome(kept=constant_places(at, np.array(places)))


def stage(site: Site, keep: int, rule: ReductionRule = FASTV, prune_text: int = 0) -> Stage:
    """Return a stage of FastV's rule, or of another."""
    return Stage(site=site, keep=keep, rule=rule, prune_text=prune_text)


def prune_tower(model: ir.Model, tower: Tower, name: str, keep: int, **options: str) -> bool:
    """Apply a method's stages in a vision graph; return whether they changed it."""
    if name == "inflection":
        options["llm_keep"] = "1"
    stages = get_method(name, options).stages(tower.facts, keep)
    return ReduceVision(method=name, stages=stages, grid=tower.grid)(model).modified


def cut_tower(model: ir.Model, tower: Tower, *stages: Stage) -> ir.Model:
    """Apply stages in a vision graph and return it."""
    ReduceVision(method="test", stages=stages, grid=tower.grid)(model)
    return model


def cut_decoder(
    decoder: SmallDecoder, stages: Sequence[Stage], *, tokens: int, prefix: int, positions: str = "contiguous"
) -> tuple[ir.Model, ReduceDecoder]:
    """Return a decoder with stages applied, and the pass."""
    model = decoder.graph()
    reduce = _cuts(stages, tokens, prefix, positions)
    assert reduce(model).modified
    return model, reduce


def select_and_decode(
    decoder: SmallDecoder, stages: Sequence[Stage], *, tokens: int, prefix: int, positions: str = "contiguous"
) -> Selecting:
    """Return a decoder behind the graph that chooses in front of its layers, with all stages applied."""
    return Selecting(decoder.graph(), _cuts(stages, tokens, prefix, positions))


def _cuts(stages: Sequence[Stage], tokens: int, prefix: int, positions: str) -> ReduceDecoder:
    return ReduceDecoder(
        method="test", stages=stages, image_tokens=tokens, prefix=prefix, positions=positions, special_ids=SPECIAL
    )
