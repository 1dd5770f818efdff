"""Turn a question into the decoder's token and position ids, and token ids back into text."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmmprune.compiler.bundle.interface import Interface
from lmmprune.compiler.runtime.check_text import check_text
from lmmprune.compiler.runtime.load_tokenizer import load_tokenizer
from lmmprune.errors import BundleError, InputError

_SLOT = "{prompt}"
ANSWER = "{answer}"
"""Where an answer stands in a further turn."""
_PROTECTED = 2  # tokens behind the image that a decoder never drops
_BYTE = re.compile("<0x[0-9A-F]{2}>")
STRIPS: Mapping[str, Callable[[str], str]] = {
    "": lambda text: text,
    "both": str.strip,
    "left": str.lstrip,
    "right": str.rstrip,
}
"""What a chat template does to the ends of a question, by the manifest's names."""


def compose(template: str, turn: str, words: Sequence[str], strip: str, answer_strip: str) -> list[tuple[str, bool]]:
    """Return the pieces of a conversation, and whether each was said, or is the template's.

    Args:
        template: Of one question.
        turn: What a further turn puts behind a question.
        words: A question, its answer, the next question, ...
        strip: Ends of questions that lose their white space.
        answer_strip: Ends of answers.
    """
    before, after = template.split(_SLOT)
    pieces = [(before, False), (STRIPS[strip](words[0]), True)]
    if len(words) > 1:
        to_answer, rest = turn.split(ANSWER)
        to_question, behind = rest.split(_SLOT)
        for answer, question in zip(words[1::2], words[2::2], strict=True):
            pieces += [(to_answer, False), (STRIPS[answer_strip](answer), True)]
            pieces += [(to_question, False), (STRIPS[strip](question), True), (behind, False)]
    return [*pieces, (after, False)]


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A prompt as the decoder takes it.

    Attributes:
        input_ids: int64 ``[1, n]``; the image token's id repeated K times at the image's place.
        image_start: index of the first image token.
        image_tokens: number of image tokens, K.
    """

    input_ids: NDArray[np.int64]
    image_start: int
    image_tokens: int

    @property
    def length(self) -> int:
        """Number of tokens, n."""
        return int(self.input_ids.shape[1])


class Prompter:
    """The prompt side of a bundle: template, tokenizer, positions."""

    def __init__(self, interface: Interface, tokenizer: Path) -> None:
        """Load the tokenizer.

        Raises:
            BundleError: The tokenizer or the prompt template of the bundle can't be used.
        """
        self._interface = interface
        self._prompt = interface.prompt
        if self._prompt.strip not in STRIPS:
            raise BundleError(f"the bundle's prompt strips {self._prompt.strip!r}, known: {', '.join(STRIPS)}")
        for part in (self._prompt.image_token, _SLOT):
            if self._prompt.template.count(part) != 1:
                raise BundleError(f"the bundle's prompt template must hold '{part}' once: {self._prompt.template!r}")
        self._tokenizer, self._plain = load_tokenizer(tokenizer), load_tokenizer(tokenizer)
        self._plain.encode_special_tokens = True
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {index: token.content for index, token in added.items() if token.special}
        self._special.setdefault(self._prompt.image_token_id, self._prompt.image_token)

    def encode(self, question: str | Sequence[str], *, image_tokens: int | None = None) -> Encoded:
        """Tokenize a question inside the template.

        Args:
            question: The bare question; or a conversation, which is a question, its answer, the next question, ...
            image_tokens: Visual tokens that left the vision graph, where the bundle has several counts; None: the
                manifest's.

        Special tokens that the user wrote (``<image>``, ``</s>``) stay plain text.

        Raises:
            InputError: The prompt can't be told from the model's own tokens, isn't text, or has too few tokens; or it
                is a conversation, and the template takes one question.
        """
        words = [question] if isinstance(question, str) else question
        if len(words) % 2 == 0:
            raise InputError(f"a conversation of {len(words)} texts: it begins and ends with a question")
        if len(words) > 1 and not self._prompt.turn:
            raise InputError(
                "this bundle takes one question: its prompt says nothing of further turns; export again from a"
                " checkpoint with a chat template that does, or ask one question"
            )
        words = [check_text(word) for word in words]
        told = self._prompt
        ids = self._encode(compose(told.template, told.turn, words, told.strip, told.answer_strip))
        image = self._prompt.image_token_id
        if ids.count(image) != 1:
            raise BundleError(
                f"the prompt template gives {ids.count(image)} tokens of id {image}, expected 1: export again"
            )
        start = ids.index(image)
        count = self._interface.vision_tokens if image_tokens is None else image_tokens
        self._check_text(len(ids) - start - 1)
        ids[start : start + 1] = [image] * count
        return Encoded(input_ids=np.array([ids], np.int64), image_start=start, image_tokens=count)

    def _check_text(self, tail: int) -> None:
        """Refuse a question with fewer tokens than the decoder drops: its first and its last one always stay."""
        dropped = sum(stage.text_removed for stage in self._interface.schedule)
        if dropped and tail < dropped + _PROTECTED:
            raise InputError(
                f"the question and what follows it have {tail} tokens, and this bundle drops {dropped} but keeps the"
                f" first and the last: ask with {dropped + _PROTECTED - tail} more, or export with a smaller prune_text"
            )

    def _encode(self, pieces: Sequence[tuple[str, bool]]) -> list[int]:
        # The whole is tokenized at once, as the reference does: tokens may span the seams of the template.
        whole = "".join(text for text, _ in pieces)
        said = b"".join(bytes([spoken]) * len(text) for text, spoken in pieces)
        encoding = self._tokenizer.encode(whole, add_special_tokens=self._prompt.special_tokens)
        ids: list[int] = []
        for token, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            literal = whole[start:stop]
            # The text must spell the token out: a word that the vocabulary lacks also becomes a special token, <unk>.
            if any(said[start:stop]) and token in self._special and self._special[token] in literal:
                plain = self._plain.encode(literal, add_special_tokens=False).ids
                if set(self._special).intersection(plain):
                    raise InputError(f"the prompt holds {literal!r}, which this model reserves: leave it out")
                ids.extend(plain)
            else:
                ids.append(token)
        return ids

    @property
    def longest_text(self) -> int:
        """Letters that no question can have: as many of the longest token as the model has positions.

        A server refuses a longer text at once, which could take minutes to be told how many tokens too long it is.
        Normalizers that take letters away (of white space, say) leave fewer tokens: hence four times as many.
        """
        return 4 * self._interface.max_tokens * max(map(len, self._tokenizer.get_vocab()))

    def positions(self, encoded: Encoded, kept: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Return the position ids of a prompt, int64 ``[1, n]``; with M-RoPE ``[3, 1, n]``, frame, row and column.

        Decoding continues with the last one plus 1.

        Args:
            encoded: The prompt.
            kept: int64 ``[K]``, the places of the kept patches in the unpruned picture, -1 for a token that is none;
                None when nothing was dropped.

        Raises:
            InputError: The prompt leaves no position for an answer.
        """
        positions = self._rows(encoded, kept) if self._interface.position_rows > 1 else self._numbers(encoded, kept)
        if self.room(encoded, positions) < 1:
            text = encoded.length - encoded.image_tokens
            capacity = self._interface.cache.capacity
            if capacity is not None and capacity < encoded.length:
                raise InputError(
                    f"the prompt is too long: {text} text and {encoded.image_tokens} image tokens, the cache of this "
                    f"bundle has room for {capacity}; shorten the prompt, or export with a larger --static-cache"
                )
            raise InputError(
                f"the prompt is too long: {text} text and {encoded.image_tokens} image tokens take "
                f"{_used(encoded, positions)} positions, the model has {self._interface.max_positions} and needs one"
                " for the answer; shorten the prompt"
            )
        return positions

    def _numbers(self, encoded: Encoded, kept: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Number the tokens one after the other; with original positions, kept ones as among all patches."""
        positions = np.arange(encoded.length, dtype=np.int64)
        if self._interface.positions == "original" and kept is not None:
            image = slice(encoded.image_start, encoded.image_start + encoded.image_tokens)
            # A token that is no patch (-1) shares the picture's first place.
            positions[image] = encoded.image_start + np.maximum(kept, 0)
            positions[image.stop :] += self._interface.tokens_before - encoded.image_tokens
        return positions[None]

    def _rows(self, encoded: Encoded, kept: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Give text one number three times, and a visual token its row and column in the whole picture.

        The text behind the picture goes on after its longer side, whatever was dropped.
        """
        rows, columns = self._interface.grid
        start, stop = encoded.image_start, encoded.image_start + encoded.image_tokens
        places = np.arange(encoded.image_tokens) if kept is None else np.maximum(kept, 0)
        positions = np.tile(np.arange(encoded.length, dtype=np.int64), (3, 1))
        positions[:, start:stop] = start + np.stack([np.zeros_like(places), *np.divmod(places, columns)])
        positions[:, stop:] += start + max(rows, columns) - stop
        return positions[:, None]

    def room(self, encoded: Encoded, positions: NDArray[np.int64]) -> int:
        """Return how many new tokens a prompt with these positions leaves room for."""
        room = self._interface.max_positions - _used(encoded, positions)
        # The last token of an answer never enters the cache.
        capacity = self._interface.cache.capacity
        return room if capacity is None else min(room, capacity + 1 - encoded.length)

    def decode(self, ids: Sequence[int]) -> str:
        """Return generated ids as text, without special tokens."""
        return self._tokenizer.decode([token for token in ids if token not in self._prompt.eos_token_ids])

    def is_byte(self, token: int) -> bool:
        """Return whether a token stands for a single byte, as in tokenizers with byte fallback."""
        return bool(_BYTE.fullmatch(self._tokenizer.id_to_token(token) or ""))


def _used(encoded: Encoded, positions: NDArray[np.int64]) -> int:
    """Return the positions that are taken; with M-RoPE a picture takes fewer than it puts into the cache."""
    return max(int(positions[..., -1].max()) + 1, encoded.length)
