"""tokenizer.json as the hub's checkpoints have it: Llama's SentencePiece with byte fallback, Qwen's byte-level BPE."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hub_layouts import vocabularies

BYTE_TOKENS = 1500
"""Tokens of the byte-level vocabulary: the first of Qwen's 151643."""
# How Qwen2 cuts text into words before its merges.
_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def added(index: int, content: str, *, special: bool = True, normalized: bool = False) -> dict[str, Any]:
    """Return a row of ``added_tokens``."""
    row: dict[str, Any] = {"id": index, "content": content, "single_word": False, "lstrip": False, "rstrip": False}
    return row | {"normalized": normalized, "special": special}


def decoder_rows(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the same rows as ``added_tokens_decoder`` of tokenizer_config.json."""
    return {str(row["id"]): {key: value for key, value in row.items() if key != "id"} for row in rows}


def write_llama(folder: Path, extra: Mapping[str, int], *, metaspace: bool = False) -> list[dict[str, Any]]:
    """Write Llama's tokenizer.json: 32000 pieces, BOS in front, spaces as U+2581; return the rows of added tokens.

    Args:
        folder: Where.
        extra: Further special tokens, text -> id.
        metaspace: Spaces are handled before the merges, as newer conversions have it, not by the normalizer.
    """
    vocabulary, merges = vocabularies.pieces()
    rows = [added(index, token) for index, token in enumerate(("<unk>", "<s>", "</s>"))]
    rows += [added(index, token) for token, index in extra.items()]
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": kind}} for kind, name in enumerate("AB"))
    pair = [bos, first, {"SpecialToken": {"id": "<s>", "type_id": 1}}, second]
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    written = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    }
    _write(
        folder,
        rows,
        normalizer=None if metaspace else written,
        pre_tokenizer=space if metaspace else None,
        post_processor={
            "type": "TemplateProcessing",
            "single": [bos, first],
            "pair": pair,
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        decoder={
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        model={
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocabulary,
            "merges": [" ".join(pair) for pair in merges],
        },
    )
    return rows


def write_qwen(folder: Path, rows: list[dict[str, Any]], *, files: bool = True) -> None:
    """Write Qwen2's tokenizer.json, a byte-level BPE without BOS, and with ``files`` vocab.json and merges.txt too."""
    vocabulary, merges = vocabularies.byte_pairs(BYTE_TOKENS)
    pieces = [" ".join(pair) for pair in merges]
    split = {"type": "Split", "pattern": {"Regex": _QWEN_WORDS}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    _write(
        folder,
        rows,
        normalizer={"type": "NFC"},
        pre_tokenizer={"type": "Sequence", "pretokenizers": [split, level]},
        post_processor=level,
        decoder=level,
        model=_byte_bpe(vocabulary, pieces),
    )
    if files:
        (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(pieces) + "\n", encoding="utf-8")


def write_gpt2(folder: Path, before: list[str], rows: list[dict[str, Any]]) -> None:
    """Write SmolLM2's tokenizer.json: special tokens first, digits alone, GPT-2's cut into words, no normalizer."""
    pairs, merges = vocabularies.byte_pairs(BYTE_TOKENS)
    vocabulary = {token: index for index, token in enumerate([*before, *pairs])}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    _write(
        folder,
        rows,
        normalizer=None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, level]},
        post_processor=None,
        decoder=level | {"add_prefix_space": True},
        model=_byte_bpe(vocabulary, [" ".join(pair) for pair in merges]),
    )


def write_llama3(folder: Path, special: list[str]) -> list[dict[str, Any]]:
    """Write Llama 3's tokenizer.json, whose post-processor puts the first of the special tokens in front."""
    vocabulary, merges = vocabularies.byte_pairs(BYTE_TOKENS)
    rows = [added(BYTE_TOKENS + index, token) for index, token in enumerate(special)]
    split = {"type": "Split", "pattern": {"Regex": _QWEN_WORDS}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    bos, text = {"SpecialToken": {"id": special[0], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    second = [{"SpecialToken": {"id": special[0], "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    known = {special[0]: {"id": special[0], "ids": [BYTE_TOKENS], "tokens": [special[0]]}}
    front = {"single": [bos, text], "pair": [bos, text, *second], "special_tokens": known}
    _write(
        folder,
        rows,
        normalizer=None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [split, level]},
        post_processor={"type": "Sequence", "processors": [level, {"type": "TemplateProcessing", **front}]},
        decoder=level | {"add_prefix_space": True, "use_regex": True},
        model=_byte_bpe(vocabulary, [" ".join(pair) for pair in merges])
        | dict.fromkeys(("continuing_subword_prefix", "end_of_word_suffix")),
    )
    return rows


def _byte_bpe(vocabulary: dict[str, int], merges: list[str]) -> dict[str, Any]:
    none = dict.fromkeys(("dropout", "unk_token"))
    empty = dict.fromkeys(("continuing_subword_prefix", "end_of_word_suffix"), "")
    rest = {"fuse_unk": False, "byte_fallback": False, "vocab": vocabulary, "merges": merges}
    return {"type": "BPE", **none, **empty, **rest}


def _write(folder: Path, rows: list[dict[str, Any]], **parts: Any) -> None:
    head = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": rows}
    (folder / "tokenizer.json").write_text(json.dumps(head | parts, ensure_ascii=False), encoding="utf-8")
