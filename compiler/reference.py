"""The PyTorch model running a bundle's own selection: what ``verify`` holds the graphs against.

Written from the formulas of the papers on transformers' eager attention; it shares no code with the graph passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lmmprune.compiler.manifest import Manifest
from lmmprune.errors import InputError
from lmmprune.models.source import Source

Array = np.ndarray[Any, Any]
Select = Callable[[tuple[torch.Tensor, ...], int, Mapping[str, Any]], torch.Tensor]


def _top(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The indices of the largest scores; on ties the lower index wins."""
    return torch.sort(scores, descending=True, stable=True).indices[:count]


def _freepruner(attentions: tuple[torch.Tensor, ...], keep: int, options: Mapping[str, Any]) -> torch.Tensor:
    last = attentions[-1].mean(dim=0)
    contribution = (last.sum(dim=0) - last.diagonal())[1:]
    pivots = _top(contribution, max(1, round(options["pivot_fraction"] * keep)))
    complement = attentions[options["shallow_layer"]][:, pivots + 1].mean(dim=(0, 1))[1:]
    complement[pivots] = -torch.inf
    return torch.cat([pivots, _top(complement, keep - len(pivots))])


def _cls(attentions: tuple[torch.Tensor, ...], keep: int, options: Mapping[str, Any]) -> torch.Tensor:
    return _top(attentions[-1][:, 0, 1:].mean(dim=0), keep)


def _random(attentions: tuple[torch.Tensor, ...], keep: int, options: Mapping[str, Any]) -> torch.Tensor:
    patches = attentions[-1].shape[-1] - 1
    return torch.from_numpy(np.random.default_rng(options["seed"]).permutation(patches)[:keep])


def _uniform(attentions: tuple[torch.Tensor, ...], keep: int, options: Mapping[str, Any]) -> torch.Tensor:
    patches = attentions[-1].shape[-1] - 1
    return torch.tensor([int((i + 0.5) * patches / keep) for i in range(keep)])


# Attentions [H,T,T] of the layers before the features, first to last -> K patch indices.
SELECTIONS: dict[str, Select] = {"freepruner": _freepruner, "cls": _cls, "random": _random, "uniform": _uniform}


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the model makes of a picture: ``features [N,C]`` of all patches, and the kept indices ``[K]``, ascending."""

    features: Array
    kept: Array


class Reference:
    """The model in PyTorch, float32, with eager attention."""

    def __init__(self, source: Source, manifest: Manifest) -> None:
        """Load the weights that the bundle was made from."""
        self._source = source
        self._manifest = manifest
        self._model = _load(source)

    @torch.no_grad()
    def see(self, pixels: Array) -> Seen:
        """Run tower, selection and projector on ``pixel_values [1,3,H,W]``."""
        spec = self._source.vision
        tower = self._model.model.vision_tower(
            torch.from_numpy(pixels), output_hidden_states=True, output_attentions=True
        )
        features = self._model.model.multi_modal_projector(tower.hidden_states[spec.layers][:, 1:])[0]
        method, keep = self._manifest.method, self._manifest.image_tokens
        if method is None:
            return Seen(features=features.numpy(), kept=np.arange(keep))
        if method not in SELECTIONS:
            raise InputError(f"no PyTorch reference for method '{method}': verify knows {', '.join(SELECTIONS)}")
        attentions = tuple(layer[0] for layer in tower.attentions[: spec.layers])
        chosen = SELECTIONS[method](attentions, keep, self._manifest.parameters)
        return Seen(features=features.numpy(), kept=np.sort(chosen.numpy()))

    @torch.no_grad()
    def logits(self, input_ids: Array, features: Array, positions: Array) -> Array:
        """Return the logits ``[S,V]`` of a whole sequence, without a cache.

        Args:
            input_ids: ``[1,S]``.
            features: ``[K,C]``, one row per placeholder among the ids.
            positions: ``[1,S]``.
        """
        language = self._model.model.language_model
        ids = torch.from_numpy(input_ids)
        image = ids[0] == self._manifest.prompt.image_token_id
        embeds = language.embed_tokens(torch.where(ids == self._manifest.prompt.image_token_id, 0, ids)).clone()
        embeds[0, image] = torch.from_numpy(features)
        hidden = language(
            inputs_embeds=embeds,
            position_ids=torch.from_numpy(positions),
            # Without a mask, transformers takes a gap in the positions for the border of a packed sequence.
            attention_mask=torch.ones_like(ids),
            use_cache=False,
        )
        result: Array = self._model.lm_head(hidden.last_hidden_state)[0].numpy()
        return result


def _load(source: Source) -> Any:
    from transformers import AutoModelForImageTextToText
    from transformers.utils import logging

    hush: Any = logging.disable_progress_bar
    hush()
    auto: Any = AutoModelForImageTextToText
    if not source.dummy:
        model = auto.from_pretrained(
            source.directory, dtype=torch.float32, attn_implementation="eager", local_files_only=True
        )
        return model.eval()
    source.config._attn_implementation = "eager"
    model = auto.from_config(source.config, dtype=torch.float32).eval()
    readers = source.readers(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(readers[name]()))
    return model
