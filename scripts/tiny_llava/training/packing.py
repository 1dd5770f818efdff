"""Several questions about one picture in one decoder sequence.

Every question sees the image prefix and itself only, and carries the positions it would have
alone: mathematically the single-question computation, with the cost of the picture shared.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from lmmprune.models.tiny_llava.questions import Question
from training.architecture import BOS, EOS, PAD

HEAD = 3  # "<s> user :" before the picture
BLOCK = 12  # longest question, "assistant :" and the answer, in tokens


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Packed questions; B pictures, Q questions each, L = BLOCK.

    Attributes:
        ids: tokens of the questions and answers `[B, Q * L]`, padded on the right.
        rows: picture of each question `[B * Q]`.
        ends: index in `ids` of the last prompt token of each question `[B * Q]`.
        answers: token of each answer `[B * Q]`.
    """

    ids: Tensor
    rows: Tensor
    ends: Tensor
    answers: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Copy the batch to a device."""
        return Batch(**{name: value.to(device) for name, value in vars(self).items()})


def pack(vocabulary: dict[str, int], asked: Sequence[Sequence[Question]]) -> Batch:
    """Tokenize and pack the questions of each picture (the same number for all)."""
    ids = torch.full((len(asked), len(asked[0]) * BLOCK), PAD)
    rows, ends, answers = [], [], []
    for row, questions in enumerate(asked):
        for turn, question in enumerate(questions):
            text = f"{question.text} assistant: {question.answer}"
            tokens = [vocabulary[word] for word in re.findall(r"\w+|[^\w\s]", text)]
            start = turn * BLOCK
            ids[row, start : start + len(tokens)] = torch.tensor(tokens)
            rows.append(row)
            ends.append(start + len(tokens) - 2)
            answers.append(tokens[-1])
    packed = (torch.tensor(part) for part in (rows, ends, answers))
    return Batch(ids=ids, **dict(zip(("rows", "ends", "answers"), packed, strict=True)))


def block_mask(prefix: int, turns: int) -> Tensor:
    """Return the additive mask `[1, 1, S, S]`: causal, no question sees another one."""
    owner = torch.cat([torch.zeros(prefix), torch.arange(1, turns + 1).repeat_interleave(BLOCK)])
    causal = torch.ones(len(owner), len(owner)).tril().bool()
    seen = causal & ((owner[:, None] == owner[None]) | (owner[None] == 0))
    return torch.zeros(seen.shape).masked_fill(~seen, -1e4)[None, None]


class Decoder(nn.Module):
    """Projector and decoder on visual features and packed questions."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        """Wrap the model; its weights are shared."""
        super().__init__()
        self.projector = model.model.multi_modal_projector
        self.language = model.model.language_model
        self.head = model.lm_head

    def forward(self, features: Tensor, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Return the logits at the question tokens `[B, Q * L, vocabulary]`.

        Args:
            features: vision features of the kept patches `[B, K, C]`.
            ids: packed question tokens `[B, Q * L]`.
            positions: position ids of the whole sequence `[B, 3 + K + Q * L]`.
            mask: additive attention mask `[1, 1, S, S]`.
        """
        embed = self.language.embed_tokens
        start = torch.tensor([BOS, *self.prompt_start], device=ids.device)
        head = embed(start).expand(len(ids), -1, -1)
        visual = self.projector(features).to(head.dtype)
        inputs = torch.cat([head, visual, embed(ids)], 1)
        hidden = self.language(
            inputs_embeds=inputs, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        logits: Tensor = self.head(hidden[:, -ids.shape[1] :])
        return logits

    prompt_start: tuple[int, int] = (5, 6)
    """Tokens of `user :`."""


def answer_loss(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the loss of answers and end tokens, and which answers are exactly right `[B * Q]`.

    A question counts as right when greedy decoding gives the answer, then the end token.
    """
    said = logits[batch.rows, batch.ends].float()
    then = logits[batch.rows, batch.ends + 1].float()
    stop = torch.full_like(batch.answers, EOS)
    loss = functional.cross_entropy(said, batch.answers) + functional.cross_entropy(then, stop)
    return loss, (said.argmax(-1) == batch.answers) & (then.argmax(-1) == EOS)
