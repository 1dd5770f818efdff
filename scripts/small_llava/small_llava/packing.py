"""Several questions about one picture in one decoder sequence, with answers of several tokens.

Every question sees the image prefix and itself only, and carries the positions it would have
alone: mathematically the single-question computation, with the cost of the picture shared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional
from training.architecture import EOS, PAD
from training.packing import HEAD

from small_llava.questions import Question
from small_llava.text import build_tokenizer

IGNORE = -100


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Packed questions; B pictures, T tokens of questions and answers each.

    Attributes:
        ids: tokens `[B, T]`, padded on the right.
        owners: number of the question of a token, from 1 within a picture, 0 = padding `[B, T]`.
        places: place of the token in its question `[B, T]`.
        labels: the token to say next where an answer is due, else IGNORE `[B, T]`.
        kept: the packed questions of each picture.
    """

    ids: Tensor
    owners: Tensor
    places: Tensor
    labels: Tensor
    kept: list[list[Question]]


@lru_cache(maxsize=1)
def _tokenizer() -> object:
    return build_tokenizer()


@lru_cache(maxsize=100_000)
def _words(word: str) -> tuple[int, ...]:
    return tuple(_tokenizer()(word, add_special_tokens=False).input_ids)  # type: ignore[operator]


def tokens_of(text: str) -> list[int]:
    """Tokenize a text word by word (cached: a tokenizer's call costs more than a word)."""
    return [token for word in text.split() for token in _words(word)]


def pack(asked: Sequence[Sequence[Question]], tokens: int) -> Batch:
    """Pack as many questions of each picture as fit into `tokens`."""
    ids = torch.full((len(asked), tokens), PAD)
    owners, places = torch.zeros_like(ids), torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORE)
    kept: list[list[Question]] = []
    for row, questions in enumerate(asked):
        start, mine = 0, []
        for question in questions:
            prompt, answer = tokens_of(f"{question.text} assistant:"), tokens_of(question.answer)
            end = start + len(prompt) + len(answer)
            if end > tokens:
                continue
            mine.append(question)
            ids[row, start:end] = torch.tensor(prompt + answer)
            owners[row, start:end] = len(mine)
            places[row, start:end] = torch.arange(end - start)
            labels[row, start + len(prompt) - 1 : end] = torch.tensor([*answer, EOS])
            start = end
        kept.append(mine)
    return Batch(ids=ids, owners=owners, places=places, labels=labels, kept=kept)


def block_mask(owners: Tensor, prefix: int) -> Tensor:
    """Return the additive mask `[B, 1, S, S]`: causal, no question sees another one."""
    owners = functional.pad(owners, (prefix, 0), value=-1)
    causal = torch.ones(owners.shape[1], owners.shape[1]).tril().bool()
    seen = causal & ((owners[:, :, None] == owners[:, None]) | (owners[:, None] == -1))
    return torch.zeros(seen.shape).masked_fill(~seen, -1e4)[:, None]


def positions(batch: Batch, visual: int, later: Tensor | None = None) -> Tensor:
    """Return position ids `[B, 3 + visual + T]`; `later` `[B, questions]` moves questions to later turns."""
    start = torch.full_like(batch.ids, HEAD + visual)
    if later is not None:
        start = start + later.gather(1, (batch.owners - 1).clamp(0))
    prefix = torch.arange(HEAD + visual).expand(len(batch.ids), -1)
    return torch.cat([prefix, start + batch.places], 1)


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean loss of the answers' tokens and their ends."""
    known = labels != IGNORE
    return functional.cross_entropy(logits[known].float(), labels[known])


def hits(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return which answers are exactly right and which begin right, bool, one per question in order."""
    known = batch.labels != IGNORE
    right = logits.argmax(-1) == batch.labels
    whole, first = [], []
    for row, questions in enumerate(batch.kept):
        for owner in range(1, len(questions) + 1):
            mine = right[row][known[row] & (batch.owners[row] == owner)]
            whole.append(bool(mine.all()))
            first.append(bool(mine[0]))
    return torch.tensor(whole), torch.tensor(first)


def per_kind(batch: Batch, right: Tensor) -> Mapping[str, list[bool]]:
    """Group the results of `hits` by kind of question."""
    groups: dict[str, list[bool]] = {}
    for question, good in zip((q for mine in batch.kept for q in mine), right.tolist(), strict=True):
        groups.setdefault(question.kind, []).append(good)
    return groups
