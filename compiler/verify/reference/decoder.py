"""From image features and a prompt to generated tokens: nothing is cached, every run is of the whole sequence."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch

from lmmprune.compiler.verify.reference.chooser import Chooser
from lmmprune.compiler.verify.reference.cut import Cut, CutRefused, Said, check
from lmmprune.compiler.verify.reference.decoder_cut import Cutter, Passed
from lmmprune.compiler.verify.reference.layer_attention import LayerAttention, llama_attention, rms_norm
from lmmprune.compiler.verify.reference.sequence import Token, places, sequence
from lmmprune.compiler.verify.reference.threads import one_thread


def say(
    model: Any,
    method: str,
    options: dict[str, Any],
    cuts: list[Cut],
    features: torch.Tensor,
    kept: np.ndarray | None,
    prefix: list[int],
    tail: list[int],
    *,
    positions: dict[str, str],
    patches: int,
    steps: int,
    grid: tuple[int, int] | None = None,
    special_ids: set[int] | frozenset[int] = frozenset(),
    forced: list[int] | None = None,
) -> Said:
    """Generate 1 + steps tokens greedily after ``prefix, features [K,C'], tail``, or follow given ones.

    Args:
        model: A transformers model with a decoder of Llama's or Qwen's layout.
        method: Its decoder-side rules are used.
        options: The method's hyper-parameters.
        cuts: The decoder's cuts in order of depth.
        features: [K,C'], one picture's image features; with DeepStack those of S layers behind them, [K,(1+S)*C'].
        kept: [K], the original patch of each feature, for 'original' numbers; None: every patch in order.
        prefix: Token ids before the image.
        tail: Token ids behind it.
        positions: {'vision': policy, 'llm': policy}. The vision policy numbers the sequence that enters the decoder,
            the llm policy says what happens to the numbers at the cuts inside it.
        patches: N, the patches of the picture.
        grid: Rows and columns of the picture, for a decoder with M-RoPE: both policies are then 'original'.
        steps: Decode steps after the prompt's own token.
        special_ids: Token ids that prune_text never removes.
        forced: The 1 + steps tokens to follow. As no token sees those behind it, one run then gives all logits.

    Raises:
        CutRefused: The method doesn't do this; prune_text would remove more tokens of the tail than may go; or a token
            that is no patch would need an original number.
    """
    sites = check(method, cuts, "llm")
    if not tail:
        raise CutRefused("the prompt needs a tail")
    if not set(positions.values()) <= {"contiguous", "original"}:
        raise CutRefused(f"no such policy: {positions}")
    if forced is not None and len(forced) != 1 + steps:
        raise CutRefused(f"{len(forced)} tokens to follow, {1 + steps} wanted")
    if grid is not None and set(positions.values()) != {"original"}:
        raise CutRefused("a visual token's row and column can't be numbered anew")
    chooser = Chooser()

    def whole(generated: list[int], rows: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the last rows' logits [rows,V] and the kept places of a run over the whole sequence."""
        if grid is None:
            tokens = sequence(len(features), kept, prefix, tail, generated, positions["vision"], patches)
        else:
            tokens = places(len(features), kept, prefix, tail, generated, grid)
        last_norm = functools.partial(rms_norm, model.get_decoder().norm)
        cutter = Cutter(method, options, sites, positions["llm"], special_ids, chooser, last_norm)
        return run(model, tokens, features, cutter, rows).numpy(), cutter.kept

    with one_thread(model):
        if forced is not None:
            logits, result = whole(forced[:-1], 1 + steps)
            return Said(kept=result, logits=logits, tokens=forced, margin=chooser.margin)
        generated: list[int] = []
        found = []
        for _ in range(1 + steps):
            (last,), result = whole(generated, 1)
            found.append(last)
            scores = {token: float(value) for token, value in enumerate(last)}
            generated += chooser.largest(scores, 1, scale=float(np.abs(last).max()))
    return Said(kept=result, logits=np.stack(found), tokens=generated, margin=chooser.margin)


def embed(model: Any, tokens: list[Token], features: torch.Tensor) -> torch.Tensor:
    """Return [T,C], what enters layer 0."""
    language = model.get_decoder()
    # The table of a large model may be in half precision, the norms never are.
    table, dtype = language.embed_tokens.weight, language.norm.weight.dtype
    own, width = features.to(dtype), table.shape[1]
    rows = [own[token.index, :width] if token.kind == "image" else table[token.id].to(dtype) for token in tokens]
    return torch.stack(rows)


def run(model: Any, tokens: list[Token], features: torch.Tensor, cutter: Cutter, rows: int) -> torch.Tensor:
    """Run all layers on the tokens, cutting on the way; return the logits [rows,V] of the last ones."""
    language = model.get_decoder()
    x = embed(model, tokens, features)
    # What DeepStack adds behind each of the first layers, [K,C'] each.
    _, *deeper = torch.split(features.to(x.dtype), x.shape[1], dim=1)
    cutter.enter(tokens, x)
    passed = None

    def attend(layer: Any, tokens: list[Token], x: torch.Tensor) -> tuple[torch.Tensor, LayerAttention]:
        normed = rms_norm(layer.input_layernorm, x)
        return llama_attention(layer.self_attn, language.rotary_emb, normed, [token.position for token in tokens])

    for number, layer in enumerate(language.layers):
        site = f"llm_input_{number}"
        if cutter.looks_ahead and site in cutter.sites:
            passed = Passed(attend(layer, tokens, x)[1], x, x)
        tokens, x = cutter.cut(site, tokens, x, passed)
        entered = x
        mixed, look = attend(layer, tokens, x)
        x = x + mixed
        tokens, x = cutter.cut(f"llm_layer_{number}", tokens, x, Passed(look, entered, x))
        x = x + layer.mlp(rms_norm(layer.post_attention_layernorm, x))
        passed = Passed(look, entered, x)
        if number < len(deeper):
            x = torch.stack(
                [row + deeper[number][t.index] if t.kind == "image" else row for row, t in zip(x, tokens, strict=True)]
            )
    cutter.finish()
    logits: torch.Tensor = model.lm_head(rms_norm(language.norm, x[-rows:]))
    return logits
