"""How answers end and what else a checkpoint says of generating them, from where transformers' ``generate`` reads it.

That is ``generation_config.json``; where there is none, ``config.json`` and its ``text_config``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmmprune.compiler.assets.checkpoint_tokenizer import CheckpointTokenizer
from lmmprune.compiler.runtime.logits import APPLIED
from lmmprune.errors import ModelError
from lmmprune.models.read_json import read_json, read_json_if_there

_FILE = "generation_config.json"
# What changes greedy answers and isn't applied, with the values that change nothing.
_OTHERS: Mapping[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "guidance_scale": (1, 1.0),
    "penalty_alpha": (0, 0.0),
    "encoder_repetition_penalty": (1, 1.0),
    "encoder_no_repeat_ngram_size": (0,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": (),
    "constraints": (),
    "stop_strings": (),
    "watermarking_config": (),
    "dola_layers": (),
    "token_healing": (False,),
    "max_time": (),
}
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "top_h", "epsilon_cutoff", "eta_cutoff")
# Parts of a configuration that may hold the decoder's settings, in transformers' order.
_DECODERS = ("decoder", "generator", "text_config")


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What an answer depends on beside the logits.

    Attributes:
        end_tokens: Ids that end an answer.
        applied: Settings that the run-time follows, by transformers' names.
        ignored: Settings that would change greedy answers too, but aren't followed.
        warnings: What the user should know.
    """

    end_tokens: tuple[int, ...]
    applied: Mapping[str, Any] = field(default_factory=dict)
    ignored: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def generation(origin: Path, tokens: CheckpointTokenizer) -> Generation:
    """Read what a checkpoint says of answers.

    Raises:
        ModelError: Nothing says how an answer ends, or a setting has a form that isn't known.
    """
    config = _of_config(read_json_if_there(origin / "config.json"))
    there = (origin / _FILE).is_file()
    where, settings = (_FILE, read_json(origin / _FILE)) if there else ("config.json", config)
    ends, warnings = _ends(origin, settings, config, tokens)
    applied = {key: value for key, value in settings.items() if key in APPLIED and APPLIED[key](where, value)}
    ignored = {
        key: settings[key]
        for key, neutral in _OTHERS.items()
        if settings.get(key) is not None and settings[key] not in neutral
    }
    if applied:
        warnings.append(f"{where} sets {_listed(applied)}: answers follow it, as those of transformers' generate do")
    if ignored:
        warnings.append(
            f"{where} sets {_listed(ignored)}, which 'run' doesn't follow: transformers' generate may answer otherwise"
        )
    if settings.get("do_sample"):
        named = {key: settings[key] for key in _SAMPLING if settings.get(key) is not None}
        warnings.append(
            f"{where} draws answers by chance (do_sample{', ' + _listed(named) if named else ''}): 'run' always takes"
            " the likeliest token, as do_sample=False does"
        )
    return Generation(end_tokens=ends, applied=applied, ignored=ignored, warnings=tuple(warnings))


def _of_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a configuration, the decoder's own where the whole says nothing."""
    decoder = next((raw[name] for name in _DECODERS if raw.get(name)), None)
    inner = decoder if isinstance(decoder, Mapping) else {}
    return {**inner, **{key: value for key, value in raw.items() if value is not None}}


def _ends(
    origin: Path, settings: Mapping[str, Any], config: Mapping[str, Any], tokens: CheckpointTokenizer
) -> tuple[tuple[int, ...], list[str]]:
    end = settings.get("eos_token_id")
    if end not in (None, []):
        return _ids(origin, end), []
    if config.get("eos_token_id") not in (None, []):
        ids = _ids(origin, config["eos_token_id"])
        return ids, [
            f"{_FILE} has no eos_token_id: answers end with token {_joined(ids)}, as config.json says, and"
            " transformers' generate goes on to its limit"
        ]
    text = tokens.special.get("eos_token")
    index = None if text is None else tokens.tokenizer.token_to_id(text)
    if index is None:
        raise ModelError(
            f"no eos_token_id in {_FILE} or config.json of '{origin}', and its tokenizer names no eos_token: answers"
            f' would never end; write the end token\'s id into {_FILE}, as {{"eos_token_id": 2}}'
        )
    return (index,), [
        f"no eos_token_id in {_FILE} or config.json: answers end with the tokenizer's {text!r} ({index}), and"
        " transformers' generate goes on to its limit"
    ]


def _ids(origin: Path, end: Any) -> tuple[int, ...]:
    rows = end if isinstance(end, list) else [end]
    if not all(isinstance(row, int) and not isinstance(row, bool) and row >= 0 for row in rows):
        raise ModelError(f"eos_token_id of '{origin}' is {end!r}: expected the id of a token, or several")
    return tuple(rows)


def _joined(ids: tuple[int, ...]) -> str:
    return " or ".join(map(str, ids))


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={_shown(value)}" for key, value in settings.items())


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
