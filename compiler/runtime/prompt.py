"""Turn a question into the decoder's token and position ids, and token ids back into text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmmprune.compiler.bundle.interface import Interface
from lmmprune.compiler.bundle.tile_grids import Grid, images_of
from lmmprune.compiler.runtime.check_text import check_text
from lmmprune.compiler.runtime.compose import SLOT, STRIPS, Piece, compose, place_pictures, write_tiles
from lmmprune.compiler.runtime.encoded import Encoded, encoded
from lmmprune.compiler.runtime.load_tokenizer import load_tokenizer
from lmmprune.compiler.runtime.positions import number_tokens
from lmmprune.errors import BundleError, InputError, one_line

_PROTECTED = 2  # tokens behind the image that a decoder never drops
_BYTE = re.compile("<0x[0-9A-F]{2}>")


def check_pictures(interface: Interface, pictures: int) -> None:
    """Refuse more pictures than a bundle was exported for, and none.

    Raises:
        InputError: There are that many.
    """
    if interface.joint and pictures != interface.images:
        raise InputError(
            f"{pictures} picture{'s' * (pictures != 1)}, this bundle chooses among exactly {interface.images} together:"
            " give so many, or export without --joint"
        )
    if not 1 <= pictures <= interface.images:
        most = "1 picture" if interface.images == 1 else f"1 to {interface.images} pictures"
        more = f": give fewer, or export with --images {pictures}" if pictures else ""
        raise InputError(f"{pictures} pictures, this bundle takes {most} per prompt{more}")


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
        for part in (self._prompt.image_token, SLOT):
            if self._prompt.template.count(part) != 1:
                raise BundleError(f"the bundle's prompt template must hold '{part}' once: {self._prompt.template!r}")
        self._tokenizer, self._plain = load_tokenizer(tokenizer), load_tokenizer(tokenizer)
        self._plain.encode_special_tokens = True
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {index: token.content for index, token in added.items() if token.special}
        self._special.setdefault(self._prompt.image_token_id, self._prompt.image_token)

    def encode(
        self,
        question: str | Sequence[str],
        *,
        image_tokens: int | Sequence[int] | None = None,
        grids: Sequence[Grid] | None = None,
    ) -> Encoded:
        """Tokenize a question inside the template.

        Args:
            question: The bare question; or a conversation, which is a question, its answer, the next question, ...
            image_tokens: Visual tokens of the picture that left the vision graph, or of each of several pictures; None:
                one picture, of the manifest's count.
            grids: The tiles of each picture, where the bundle cuts them into tiles: ``image_tokens`` are of each tile
                then. None: one picture of the most tiles.

        Where the bundle takes several pictures, ``<image>`` in a question is the place of one. Otherwise special tokens
        that the user wrote (``<image>``, ``</s>``) stay plain text.

        Raises:
            InputError: The prompt can't be told from the model's own tokens, isn't text, or has too few tokens; it is a
                conversation, and the template takes one question; or there are too many pictures, or not as many as
                the prompt has places.
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
        tiles = self._interface.tile_grids
        if tiles is not None:
            grids = [tiles.largest] if grids is None else grids
        runs = 1 if tiles is None else sum(map(images_of, grids or ()))
        counts = [self._interface.vision_tokens] * runs if image_tokens is None else image_tokens
        counts = [counts] if isinstance(counts, int) else list(counts)
        pictures = len(counts) if tiles is None else len(grids or ())
        check_pictures(self._interface, pictures)
        told, image = self._prompt, self._prompt.image_token_id
        if self._interface.images > 1:
            pieces = place_pictures(told, words, pictures)
        else:
            pieces = compose(told.template, told.turn, words, told.strip, told.answer_strip)
        if tiles is not None:
            pieces = write_tiles(pieces, tiles, grids or ())
        texts: list[list[int]] = [[]]
        for token in self._encode(pieces):
            if token == image:
                texts.append([])
            else:
                texts[-1].append(token)
        if len(texts) - 1 != len(counts):
            raise BundleError(
                f"the prompt template gives {len(texts) - 1} tokens of id {image}, expected {len(counts)}: export again"
            )
        self._check_text(len(texts[-1]))
        return encoded(texts, counts, image)

    def _check_text(self, tail: int) -> None:
        """Refuse a question with fewer tokens than the decoder drops: its first and its last one always stay."""
        dropped = sum(stage.text_removed for stage in self._interface.schedule)
        if dropped and tail < dropped + _PROTECTED:
            raise InputError(
                f"the question and what follows it have {tail} tokens, and this bundle drops {dropped} but keeps the"
                f" first and the last: ask with {dropped + _PROTECTED - tail} more, or export with a smaller prune_text"
            )

    def _encode(self, pieces: Sequence[Piece]) -> list[int]:
        # The whole is tokenized at once, as the reference does: tokens may span the seams of the template.
        whole = "".join(text for text, _ in pieces)
        said = b"".join(bytes([spoken]) * len(text) for text, spoken in pieces)
        try:
            encoding = self._tokenizer.encode(whole, add_special_tokens=self._prompt.special_tokens)
        except Exception as error:  # tokenizers raises nothing narrower
            raise BundleError(f"tokenizer.json can't tokenize the prompt: {one_line(str(error), 200)}") from error
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
            kept: int64 ``[K]``, the places of the kept patches among those of all pictures (the ones of picture i begin
                at i * N), -1 for a token that is none; None when nothing was dropped.

        Raises:
            InputError: The prompt leaves no position for an answer.
        """
        positions = number_tokens(self._interface, encoded, kept)
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
