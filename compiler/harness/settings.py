"""What a task of lmms-eval says of generation, in the run-time's words."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmmprune.compiler.runtime.sampling import Sampling
from lmmprune.errors import InputError

_DEFAULT_TOKENS = 1024  # where a task says nothing: as lmms-eval's clients of chat APIs do
_READ = ("max_new_tokens", "until", "temperature", "top_p", "top_k", "seed")
# do_sample: a temperature of 0 draws nothing, any other draws, as through lmms-eval's clients of chat APIs.
# image_aspect_ratio: for models that see a picture in several ways; a bundle has one.
_PASSED_OVER = ("do_sample", "image_aspect_ratio")
# Where they hold one of these, they change nothing.
_HARMLESS: Mapping[str, tuple[Any, ...]] = {"num_beams": (1,), "repetition_penalty": (1,), "n": (1,)}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a question is answered.

    Attributes:
        max_new_tokens: The answer ends after so many.
        sampling: How tokens are chosen.
        stop: Texts that end it.
    """

    max_new_tokens: int
    sampling: Sampling
    stop: tuple[str, ...]


def read_settings(given: Mapping[str, Any]) -> Settings:
    """Read a task's ``generation_kwargs``; None is as good as nothing.

    Where tokens are drawn and no seed is given, it comes from Python's generator, which lmms-eval seeds: the same
    command gives the same answers.

    Raises:
        InputError: It holds what would change the answer and can't be heeded, or a value is out of its range.
    """
    said = {name: value for name, value in given.items() if value is not None and name not in _PASSED_OVER}
    for name, value in said.items():
        if name in _HARMLESS and value in _HARMLESS[name]:
            continue
        if name not in _READ:
            known = f"supported as {_HARMLESS[name][0]} only" if name in _HARMLESS else "not supported"
            raise InputError(f"generation_kwargs: '{name}' ({value!r}) is {known}: take it out of the task")
    until = said.get("until", ())
    return Settings(
        max_new_tokens=_whole(said, "max_new_tokens", _DEFAULT_TOKENS),
        sampling=_sampling(said),
        stop=(until,) if isinstance(until, str) else tuple(until),
    )


def _sampling(said: Mapping[str, Any]) -> Sampling:
    temperature = _number(said, "temperature", 0)
    if not temperature:
        return Sampling()  # tasks say how to draw also where nothing is drawn
    return Sampling(
        temperature=temperature,
        top_p=_number(said, "top_p", 1),
        top_k=max(_whole(said, "top_k", 0), 0),  # -1: all, for some
        seed=_whole(said, "seed", random.getrandbits(32)),
    )


def _number(said: Mapping[str, Any], name: str, default: float) -> float:
    value = said.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"generation_kwargs: {name} is {value!r}, expected a number")
    return value


def _whole(said: Mapping[str, Any], name: str, default: int) -> int:
    value = _number(said, name, default)
    if value != int(value):
        raise InputError(f"generation_kwargs: {name} is {value!r}, expected a whole number")
    return int(value)
