"""What a method does at a site inside the decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lmmprune.compiler.verify.reference import ficoco
from lmmprune.compiler.verify.reference.chooser import Chooser
from lmmprune.compiler.verify.reference.cut import CutRefused, check_keep
from lmmprune.compiler.verify.reference.dart import dart
from lmmprune.compiler.verify.reference.decoder_scores import page_rank, prior_score, raters, row_score
from lmmprune.compiler.verify.reference.greedy import cdpruner, mmtok
from lmmprune.compiler.verify.reference.layer_attention import LayerAttention
from lmmprune.compiler.verify.reference.sequence import Token, renumber


@dataclass
class Passed:
    """What the layer before a cut did with T tokens."""

    attention: LayerAttention
    entered: torch.Tensor  # [T,C]
    made: torch.Tensor  # [T,C], of them; what DeepStack adds behind it is no part

    def of(self, tokens: int) -> Passed:
        """Return what it did with the first tokens."""
        return Passed(self.attention.of(tokens), self.entered[:tokens], self.made[:tokens])


@dataclass
class Cutter:
    """Cuts one run of the sequence; only what the prompt's tokens see of each other decides anything."""

    method: str
    options: dict[str, Any]
    sites: dict[str, int]
    policy: str  # of the numbers behind a cut
    special_ids: set[int] | frozenset[int]
    chooser: Chooser
    last_norm: Callable[[torch.Tensor], torch.Tensor]  # of the decoder, on rows [T,C]
    kept: dict[str, np.ndarray] = field(default_factory=dict)  # site -> [K] image tokens left, as they entered
    raters: list[int] = field(default_factory=list)  # places in the tail

    @property
    def embedded(self) -> bool:
        """Whether the method cuts what enters layer 0, with no attention to look at."""
        return self.method in ("cdpruner", "mmtok") or self.options.get("form") == "embedding"

    @property
    def looks_ahead(self) -> bool:
        """Whether a cut is scored by the layer that it is in front of."""
        return self.method == "pyramiddrop"

    def enter(self, tokens: list[Token], x: torch.Tensor) -> None:
        """Look at what enters layer 0, x [T,C]."""
        if self.method == "sparsevlm":
            rows = x.numpy()
            image, tail = (rows[_rows(tokens, kind)] for kind in ("image", "tail"))
            self.raters = raters(self.chooser, image, tail)

    def finish(self) -> None:
        """Check that every site was reached.

        Raises:
            CutRefused: One was not.
        """
        if missing := self.sites.keys() - self.kept.keys():
            raise CutRefused(f"the decoder has no {sorted(missing)}")

    def cut(
        self, site: str, tokens: list[Token], x: torch.Tensor, passed: Passed | None
    ) -> tuple[list[Token], torch.Tensor]:
        """Cut at a site, if it is one.

        Args:
            site: Where the sequence is.
            tokens: T of them.
            x: [T,C].
            passed: What the site is scored by; None before layer 0.

        Returns:
            The tokens and rows left.

        Raises:
            CutRefused: The method needs a layer before the site, or none, or the count makes no sense.
        """
        if site not in self.sites:
            return tokens, x
        if (passed is None) != self.embedded:
            raise CutRefused(f"nothing to score {site} by")
        keep, visual, text = self.sites[site], _rows(tokens, "image"), _rows(tokens, "tail")
        check_keep(keep, len(visual), site)
        prompt = passed and passed.of(sum(token.kind != "generated" for token in tokens))
        gone: set[int] = set()
        if keep < len(visual):
            if site.startswith("llm_layer"):
                assert prompt is not None
                x, places = self._ficoco(prompt.attention, x, visual, text, keep)
            else:
                places = self._choose(prompt, x.numpy(), visual, text, keep)
            gone |= {row for place, row in enumerate(visual) if place not in places}
        if prompt is not None:
            gone |= self._text_to_drop(prompt.attention, tokens, text)
        self.kept[site] = np.array([tokens[row].index for row in visual if row not in gone], dtype=np.int64)
        if not gone:
            return tokens, x
        left = [row for row in range(len(tokens)) if row not in gone]
        tokens, x = [tokens[row] for row in left], x[left]
        return (renumber(tokens) if self.policy == "contiguous" else tokens), x

    def _choose(self, prompt: Passed | None, x: np.ndarray, visual: list[int], text: list[int], keep: int) -> list[int]:
        """Return the places kept among the visual rows of x [T,C], ascending."""
        options = {name: value for name, value in self.options.items() if name != "form"}
        if self.method == "cdpruner":
            asked = sorted([*range(visual[0]), *text]) if options.get("kernel") == "blend" else text
            return cdpruner(x[visual], x[asked], keep, self.chooser, **options)
        if self.method == "mmtok":
            return mmtok(x[visual], x[text], keep, self.chooser, **options)
        if self.method == "dart":
            # Of the layer form the keys of all heads and the text, of the other embeddings and all that is no image.
            long = x if prompt is None else np.concatenate(list(prompt.attention.k), axis=1)
            norms = np.abs(long.astype(np.float64)).sum(axis=1)
            others = text if prompt is not None else sorted([*range(visual[0]), *text])
            compared = x if prompt is None else self.last_norm(torch.from_numpy(x)).numpy()
            return dart(compared, visual, others, norms, keep, self.chooser, **options)
        assert prompt is not None
        if self.method == "v2drop":
            moved = np.linalg.norm((prompt.made - prompt.entered).numpy()[visual], axis=1)
            return sorted(self.chooser.largest(dict(enumerate(map(float, moved))), keep))
        if self.method == "priortr":
            if len(text) == 1:
                # The text is its own prior.
                return list(range(keep))
            score, scale = prior_score(prompt.attention, visual, text)
            return sorted(self.chooser.largest(score, keep, scale))
        return sorted(self.chooser.largest(dict(enumerate(self._score(prompt.attention, visual, text))), keep))

    def _score(self, prompt: LayerAttention, visual: list[int], text: list[int]) -> list[float]:
        if self.method == "aim":
            return page_rank(prompt, visual, **self.options)
        if self.method == "sparsevlm":
            return row_score(prompt, [text[t] for t in self.raters], visual)
        if self.method == "inflection":
            return row_score(prompt, text, visual)
        assert self.method in ("fastv", "pyramiddrop")
        return row_score(prompt, text[-1:], visual)

    def _text_to_drop(self, prompt: LayerAttention, tokens: list[Token], text: list[int]) -> set[int]:
        """Rows of the tail that inflection's prune_text removes."""
        count = self.options.get("prune_text", 0) if self.method == "inflection" else 0
        if count == 0:
            return set()
        score = dict(zip(text, row_score(prompt, text, text), strict=True))
        free = {row: score[row] for row in text[1:-1] if tokens[row].id not in self.special_ids}
        if count > len(free):
            raise CutRefused(f"prune_text {count}, {len(free)} tokens of the tail may go")
        return set(self.chooser.smallest(free, count))

    def _ficoco(
        self, prompt: LayerAttention, x: torch.Tensor, visual: list[int], text: list[int], keep: int
    ) -> tuple[torch.Tensor, list[int]]:
        """Merge the redundant visual rows of x [T,C] into the others; return x and the places kept."""
        attention = prompt.mean_attention
        s = ficoco.decoder_redundancy(attention, visual, text, self.options.get("beta", 0.6))
        gone = ficoco.dropped(self.chooser, s, dict.fromkeys(range(len(s)), max(abs(value) for value in s)), keep)
        kept = [place for place in range(len(visual)) if place not in gone]
        correlation = ficoco.decoder_correlation(attention, visual, text, kept, gone, self.options.get("gamma", 0.6))
        w = ficoco.weights(self.chooser, correlation, self.options.get("eps", 0.998))
        merged = ficoco.merge(x[visual].numpy(), kept, w)
        x = x.clone()
        x[[visual[place] for place in kept]] = torch.from_numpy(merged)
        return x, kept


def _rows(tokens: list[Token], kind: str) -> list[int]:
    return [row for row, token in enumerate(tokens) if token.kind == kind]
