"""A decoder behind the graph that chooses in front of its layers, called as if both were one."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
from towers import session

from lmmprune.passes.reduce.reduce_decoder import ReduceDecoder
from lmmprune.passes.reduce.select_before_layers import select_before_layers

Arrays = dict[str, np.ndarray]


class Selecting:
    """Takes prompts with all features, then one token after the other; says which of all features stay at each site."""

    def __init__(self, decoder: ir.Model, run: ReduceDecoder, *, checked: bool = True) -> None:
        """Write the graphs: the stages of ``run`` on a decoder, which is changed, for ``run.image_tokens`` features."""
        stage = next(stage for stage in run.stages if stage.site.before_layers)
        self.gone = run.image_tokens - stage.keep
        self.prefix, self.keep, self.policy = run.prefix, stage.keep, run.positions
        selection = select_before_layers(
            decoder, stage, method=run.method, image_tokens=run.image_tokens, prefix=run.prefix
        )
        assert selection is not None
        self.selection, self.decoder = selection, decoder
        self.run = dataclasses.replace(run, image_tokens=stage.keep)
        (self.run if checked else self.run.call)(decoder)
        self._select, self._decode = session(selection), session(decoder)
        self._features: np.ndarray | None = None

    def removed_before(self, layers: int) -> list[int]:
        """Return how many tokens are gone before each layer."""
        return [self.gone + count for count in self.run.removed_before(layers)]

    def __call__(self, feeds: Arrays) -> Arrays:
        """Run what comes: more tokens than one are a prompt."""
        ids, positions = feeds["input_ids"], feeds["position_ids"]
        if ids.shape[1] == 1:
            if self.policy == "contiguous":
                positions = positions - self.gone
            return self._decode({**feeds, "position_ids": positions, "image_features": self._features})
        found = self._select({name: feeds[name] for name in ("input_ids", "image_features")})
        chosen = found["kept_indices.llm_input_0"][0]
        self._features = found["selected_features"]
        behind = np.arange(self.prefix + self.keep + self.gone, ids.shape[1])
        rows = np.concatenate([np.arange(self.prefix), self.prefix + chosen, behind])
        places = positions[..., rows] if self.policy == "original" else positions[..., : len(rows)]
        shorter = {"input_ids": ids[:, rows], "position_ids": places, "image_features": self._features}
        said = self._decode({**feeds, **shorter})
        inside = {name: chosen[value] for name, value in said.items() if name.startswith("kept_indices")}
        return {**said, **found, **inside}


def selects(run: ReduceDecoder) -> bool:
    """Whether there is a stage in front of all layers."""
    return any(stage.site.before_layers for stage in run.stages)


def own_nodes(model: ir.Model) -> list[str]:
    """Return the names of the nodes that passes wrote."""
    return [str(node.name) for node in model.graph if str(node.name).startswith("lmmprune/")]
