"""The tokenizer of a checkpoint as transformers loads it, and the special tokens that its chat template may name."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from lmmprune.compiler.assets.quiet import quiet_transformers
from lmmprune.compiler.bundle.bundle import TOKENIZER
from lmmprune.compiler.runtime.load_tokenizer import parse_tokenizer
from lmmprune.errors import ModelError, said
from lmmprune.limits import parse_json
from lmmprune.models.read_json import read_json_if_there

_SLOW = ("tokenizer.model", "vocab.json", "tekken.json", "tiktoken.model", "spiece.model")


@dataclass(frozen=True, kw_only=True)
class CheckpointTokenizer:
    """A tokenizer with what stands beside it.

    Attributes:
        text: ``tokenizer.json`` for the bundle, without padding and truncation.
        tokenizer: The same, loaded.
        special: Name -> special token, such as ``bos_token`` -> ``<s>``: what chat templates are rendered with.
        warnings: What the user should know.
    """

    text: str
    tokenizer: Tokenizer
    special: Mapping[str, str]
    warnings: tuple[str, ...] = ()

    def adds_special_tokens(self, prompt: str) -> bool:
        """Return whether the tokenizer still puts its special tokens around a prompt.

        A prompt that begins with the token of the beginning brings all of them itself: transformers' processors have
        the same rule, so that no prompt begins twice.
        """
        begin = self.special.get("bos_token")
        return begin is None or not prompt.startswith(begin)


def checkpoint_tokenizer(origin: Path) -> CheckpointTokenizer:
    """Load the tokenizer in a directory.

    transformers doesn't take every ``tokenizer.json`` as it lies there: some classes put their own normalizer and
    pre-tokenizer into it, and tokens of ``tokenizer_config.json`` are added. The bundle gets what came of it. Files of
    SentencePiece or of BPE merges are converted on the way.

    Raises:
        ModelError: There is no tokenizer, or none that can be loaded.
    """
    raw = _read(origin / TOKENIZER) if (origin / TOKENIZER).is_file() else None
    if raw is None and not any((origin / name).is_file() for name in _SLOW):
        raise ModelError(
            f"no tokenizer in '{origin}' ({TOKENIZER}, or {', '.join(_SLOW)}): save the model's fast tokenizer into it"
        )
    try:
        loaded = _load(origin)
    except Exception as error:  # whatever its files or its class make it raise: said, or refused
        cause = said(error)
        if raw is None:
            raise ModelError(f"the tokenizer in '{origin}' can't be converted ({cause}): {_advice(origin)}") from error
        return CheckpointTokenizer(
            text=_off(raw),
            tokenizer=parse_tokenizer(raw),
            special=_special_of_files(origin),
            warnings=(f"transformers can't load the tokenizer in '{origin}' ({cause}): {TOKENIZER} is used as it is",),
        )
    tokenizer = parse_tokenizer(loaded.backend_tokenizer.to_str())
    unchanged = raw is not None and parse_tokenizer(raw).to_str() == tokenizer.to_str()
    return CheckpointTokenizer(
        text=_off(raw) if raw is not None and unchanged else tokenizer.to_str(),
        tokenizer=tokenizer,
        special=dict(loaded.special_tokens_map),
    )


def _advice(origin: Path) -> str:
    converters = {"tokenizer.model": "sentencepiece", "spiece.model": "sentencepiece", "tiktoken.model": "tiktoken"}
    for file, package in converters.items():
        if (origin / file).is_file() and importlib.util.find_spec(package) is None:
            return f"{file} needs the package '{package}', which isn't installed: pip install {package}"
    return f"where it can be loaded, save it with save_pretrained, which writes {TOKENIZER}"


def _load(origin: Path) -> Any:
    from transformers import AutoTokenizer

    with quiet_transformers():
        loaded = AutoTokenizer.from_pretrained(origin, trust_remote_code=False, local_files_only=True)
    if not hasattr(loaded, "backend_tokenizer"):
        raise TypeError(f"{type(loaded).__name__} isn't a fast tokenizer")
    return loaded


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
        Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises bare Exception for every kind of damage
        raise ModelError(f"'{path}' can't be used ({error}): download it again") from error
    return text


def _off(text: str) -> str:
    """Return a ``tokenizer.json`` without padding and truncation, untouched where it had none."""
    raw = parse_json(text)
    if raw.get("padding") is None and raw.get("truncation") is None:
        return text
    return json.dumps(raw | {"padding": None, "truncation": None}, ensure_ascii=False)


def _special_of_files(origin: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        rows = read_json_if_there(origin / name)
        named = rows.get("extra_special_tokens")
        for key, value in [*rows.items(), *(named.items() if isinstance(named, dict) else ())]:
            content = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(content, str):
                found[key] = content
    return found
