"""What a checkpoint's generation settings do to the logits before a token is taken, as in transformers.

The settings are transformers' own names of ``generation_config.json``; their order here is that of its processors.
Token ids of the prompt count as well as those of the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmmprune.compiler.bundle.manifest import Manifest
from lmmprune.compiler.runtime.encoded import Encoded
from lmmprune.compiler.runtime.sampling import Pick
from lmmprune.errors import BundleError, ModelError
from lmmprune.names import LOGITS

Logits = NDArray[Any]
Scores = NDArray[np.float32]
Ids = NDArray[np.int64]


class LogitsRules:
    """The settings of a bundle."""

    def __init__(self, manifest: Manifest) -> None:
        """Read those that the manifest says are applied.

        Raises:
            BundleError: They make no sense.
        """
        self._settings = manifest.generation.get("applied", {})
        _check(self._settings, manifest)
        self._patches = manifest.picture_tokens
        self._eos = np.array(manifest.prompt.eos_token_ids, np.int64)
        self._biases = [(list(row[0]), float(row[1])) for row in self._settings.get("sequence_bias", ())]
        # An end token alone can't be forbidden.
        banned = [row for row in self._settings.get("bad_words_ids", ()) if row not in [[end] for end in self._eos]]
        self._banned = [(row, -np.inf) for row in banned]

    def answer(self, prompt: Encoded, limit: int, pick: Pick) -> Pick:
        """Return what chooses the tokens of one answer, one call after the other.

        Args:
            prompt: The prompt.
            limit: Tokens of the answer at most.
            pick: Chooses a token from the changed logits.
        """
        if not self._settings:
            return pick
        history: Ids = prompt.input_ids[0]
        # Lengths are those of whole pictures, before any tokens were dropped.
        whole = sum(view.tokens_before for view in prompt.views) or len(prompt.spans) * self._patches
        length, new = prompt.length - prompt.image_tokens + whole, 0

        def choose(logits: Logits) -> int:
            nonlocal history, new
            scores = self.apply(logits, history, length=length + new, new=new, last=new == limit - 1)
            token = pick(scores)
            history, new = np.append(history, token), new + 1
            return token

        return choose

    def apply(self, logits: Logits, history: Ids, *, length: int, new: int, last: bool) -> Scores:
        """Return the changed logits ``[V]``.

        Args:
            logits: ``[V]``, of any type.
            history: Ids of prompt and answer so far, int64 ``[n]``.
            length: How many these are in the unpruned model.
            new: Tokens of the answer so far.
            last: Whether the answer ends with this token.
        """
        scores: Scores = np.array(logits, np.float32)
        ask = self._settings.get
        _add(scores, history, self._biases)
        if (penalty := ask("repetition_penalty")) is not None:
            seen = _inside(np.unique(history), scores)
            found, factor = scores[seen], np.float32(penalty)
            scores[seen] = np.where(found < 0, found * factor, found / factor)
        if (size := ask("no_repeat_ngram_size")) is not None and len(history) >= size:
            windows = np.lib.stride_tricks.sliding_window_view(history, size)
            same = (windows[:, :-1] == history[len(history) + 1 - size :]).all(axis=1)
            scores[_inside(windows[same, -1], scores)] = -np.inf
        _add(scores, history, self._banned)
        if length < ask("min_length", 0) or new < ask("min_new_tokens", 0):
            scores[_inside(self._eos, scores)] = -np.inf
        if (forced := ask("forced_eos_token_id")) is not None and last:
            scores[:] = -np.inf
            scores[forced] = 0
        for name in ("suppress_tokens", "begin_suppress_tokens"):
            if name == "suppress_tokens" or new == 0:
                scores[_inside(np.array(ask(name, ()), np.int64), scores)] = -np.inf
        return scores


def _check(settings: Mapping[str, Any], manifest: Manifest) -> None:
    """Check the settings of a manifest.

    Raises:
        BundleError: One is unknown, of another form, or names tokens that the logits don't have.
    """
    where = "the bundle's manifest (generation.applied)"
    size = next(tensor.shape[-1] for tensor in manifest.decoder.outputs if tensor.name == LOGITS)
    for name, value in settings.items():
        if name not in APPLIED:
            raise BundleError(f"{where} has {name!r}, known: {', '.join(APPLIED)}: export again")
        try:
            APPLIED[name](where, value)
        except ModelError as error:
            raise BundleError(f"{error}: export again") from error
    forced = settings.get("forced_eos_token_id")
    sequences = [row[0] for row in settings.get("sequence_bias") or ()] + list(settings.get("bad_words_ids") or ())
    ids = [row[-1] for row in sequences] + ([] if forced is None else forced if isinstance(forced, list) else [forced])
    if isinstance(size, int) and ids and max(ids) >= size:
        raise BundleError(f"{where} names the token {max(ids)}, expected one of 0..{size - 1}: export again")


def _inside(ids: Ids, scores: Scores) -> Ids:
    """Return the ids that the logits have: a table of embeddings may be longer."""
    return ids[ids < len(scores)]


def _add(scores: Scores, history: Ids, biases: Sequence[tuple[list[int], float]]) -> None:
    """Add a bias to every token that would complete its sequence."""
    for sequence, bias in biases:
        *before, last = sequence
        if len(before) <= len(history) and history[len(history) - len(before) :].tolist() == before:
            scores[last] += np.float32(bias)


Check = Callable[[str, Any], bool]


def _number(name: str, low: float, neutral: float, *kinds: type[int] | type[float]) -> Check:
    def check(where: str, value: Any) -> bool:
        if value is None or value == neutral:
            return False
        if type(value) not in kinds or value < low:
            raise ModelError(f"{name} in {where} is {value!r}: expected a number from {low:g} on")
        return True

    return check


def _list(name: str, form: str, fits: Callable[[Any], bool]) -> Check:
    def check(where: str, value: Any) -> bool:
        if value is None or value == []:
            return False
        if not isinstance(value, list) or not all(fits(row) for row in value):
            raise ModelError(f"{name} in {where} is {value!r}: expected {form}")
        return True

    return check


def _token(row: Any) -> bool:
    return isinstance(row, int) and not isinstance(row, bool) and row >= 0


def _tokens(row: Any) -> bool:
    return isinstance(row, list) and bool(row) and all(map(_token, row))


def _biased(row: Any) -> bool:
    return isinstance(row, list) and len(row) == 2 and _tokens(row[0]) and isinstance(row[1], float)


def _end(where: str, value: Any) -> bool:
    if value is None:
        return False
    if not _token(value) and not _tokens(value):
        raise ModelError(f"forced_eos_token_id in {where} is {value!r}: expected the id of a token, or several")
    return True


APPLIED: Mapping[str, Check] = {
    "sequence_bias": _list("sequence_bias", "rows of token ids and a bias", _biased),
    "repetition_penalty": _number("repetition_penalty", 1e-9, 1, int, float),
    "no_repeat_ngram_size": _number("no_repeat_ngram_size", 1, 0, int),
    "bad_words_ids": _list("bad_words_ids", "lists of token ids", _tokens),
    "min_length": _number("min_length", 1, 0, int),
    "min_new_tokens": _number("min_new_tokens", 1, 0, int),
    "forced_eos_token_id": _end,
    "suppress_tokens": _list("suppress_tokens", "token ids", _token),
    "begin_suppress_tokens": _list("begin_suppress_tokens", "token ids", _token),
}
"""Settings that are followed; each has a check that says whether a value changes anything."""
