"""What is constant about a model's prompts: how many tokens precede the picture, and which tokens are special."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from lmmprune.compiler.bundle.manifest import Prompt
from lmmprune.compiler.runtime.load_tokenizer import load_tokenizer
from lmmprune.errors import ModelError

# Different lengths and first letters: what is the same for all of them is the template's.
_QUESTIONS = ("a", "What is in the picture?", "3, 2, 1")


@dataclass(frozen=True, kw_only=True)
class TextLayout:
    """``prefix`` tokens stand before the image in every prompt; ``special_ids`` never carry a question's words."""

    prefix: int
    special_ids: tuple[int, ...]


def text_layout(prompt: Prompt, tokenizer: Path, *, in_decoder: bool) -> TextLayout:
    """Read the layout off the tokenized template.

    Args:
        prompt: Template and image token.
        tokenizer: ``tokenizer.json``.
        in_decoder: Whether tokens are cut inside the decoder, which needs the prefix to be constant.

    Raises:
        ModelError: The image's place depends on the question, or isn't a token.
    """
    encoder = load_tokenizer(tokenizer)
    before = {_place(prompt, encoder, question) for question in _QUESTIONS}
    if len(before) > 1 and in_decoder:
        raise ModelError(
            f"the image stands behind {min(before)} to {max(before)} tokens, depending on the question: a cut inside"
            " the decoder needs its place to be constant; use a method that prunes at the vision output"
        )
    special = [index for index, token in encoder.get_added_tokens_decoder().items() if token.special]
    return TextLayout(prefix=min(before), special_ids=tuple(sorted({*special, prompt.image_token_id})))


def _place(prompt: Prompt, encoder: Tokenizer, question: str) -> int:
    text = prompt.template.replace("{prompt}", question)
    ids = encoder.encode(text, add_special_tokens=prompt.special_tokens).ids
    if prompt.image_token_id not in ids:
        raise ModelError(
            f"the tokenizer doesn't find '{prompt.image_token}' in {text!r}: it must be a token of its own"
        )
    return ids.index(prompt.image_token_id)
