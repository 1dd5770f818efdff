"""Load a ``tokenizer.json`` for prompts: whatever it was saved with, nothing is padded and nothing is cut off."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from lmmprune.errors import BundleError, said


def load_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer of a bundle.

    Raises:
        BundleError: The file can't be read or isn't a tokenizer.
    """
    try:
        return parse_tokenizer(path.read_text(encoding="utf-8"))
    except Exception as error:  # tokenizers raises bare Exception for every kind of damage
        raise BundleError(f"'{path}' can't be used ({said(error)}): export again") from error
    except BaseException as error:  # what a panic of its Rust becomes is no Exception
        if type(error).__name__ != "PanicException":
            raise
        raise BundleError(f"'{path}' can't be used ({said(error)}): export again") from error


def parse_tokenizer(text: str) -> Tokenizer:
    """Return the tokenizer that a JSON text describes, without its padding and truncation."""
    tokenizer = Tokenizer.from_str(text)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
