"""Real vocabularies out of packages: SentencePiece with Llama's structure, and Qwen's byte-level BPE.

They live in a folder of their own, since nothing else of these packages is wanted.
"""

from __future__ import annotations

import base64
import functools
import itertools
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

HOME = Path(sys.prefix) / "vocabularies"
Merges = list[tuple[str, str]]


def _file(*parts: str) -> Path:
    found = HOME.joinpath(*parts)
    assert found.is_file(), (
        f"no vocabularies: pip install --no-deps --target {HOME}"
        f" -r {Path(__file__).parents[1] / 'vocabulary-requirements.txt'}"
    )
    return found


@functools.cache
def pieces() -> tuple[dict[str, int], Merges]:
    """Return the 32000 pieces of Mistral's first SentencePiece model, whose form is Llama's, and their merges.

    Ids 0, 1 and 2 are <unk>, <s> and </s>; the 256 bytes follow.
    """
    data = _file("mistral_common", "data", "tokenizer.model.v1").read_bytes()
    # ModelProto: field 1 is a piece, whose field 1 is its text.
    names = [dict(_fields(row))[1].decode("utf-8") for field, row in _fields(data) if field == 1]
    vocabulary = {name: index for index, name in enumerate(names)}
    merges: Merges = []
    for name in names[259:]:
        splits = [(name[:cut], name[cut:]) for cut in range(1, len(name))]
        merges += sorted(
            (split for split in splits if split[0] in vocabulary and split[1] in vocabulary),
            key=lambda split: (vocabulary[split[0]], vocabulary[split[1]]),
        )
    return vocabulary, merges


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the length-delimited fields of a protocol buffer, and pass over the others."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 2:
            length, at = _varint(data, at)
            yield tag >> 3, data[at : at + length]
            at += length
        elif kind == 0:
            _, at = _varint(data, at)
        else:
            at += struct.calcsize({1: "<d", 5: "<f"}[kind])


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


@functools.cache
def byte_pairs(count: int) -> tuple[dict[str, int], Merges]:
    """Return the first tokens of Qwen's byte-level vocabulary and their merges: a BPE stopped early.

    Args:
        count: How many, at least the 256 bytes.
    """
    spelled = _spelling()
    with _file("dashscope", "resources", "qwen.tiktoken").open(encoding="ascii") as lines:
        rows = [base64.b64decode(line.split()[0]) for _, line in zip(range(count), lines, strict=False)]
    ranks = {row: rank for rank, row in enumerate(rows)}
    merges: Merges = []
    for row in rows:
        if len(row) > 1:
            left, right = _halves(row, ranks)
            merges.append(("".join(spelled[b] for b in left), "".join(spelled[b] for b in right)))
    return {"".join(spelled[byte] for byte in row): rank for row, rank in ranks.items()}, merges


def _halves(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """Return the two parts that the last merge of a token puts together: BPE with the merges before it."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [ranks.get(left + right, len(ranks)) for left, right in itertools.pairwise(parts)]
        at = pairs.index(min(pairs))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def _spelling() -> dict[int, str]:
    """Return the printable character that stands for each byte in a byte-level vocabulary."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + place) for place, byte in enumerate(hidden)}
