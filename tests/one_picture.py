"""The methods that choose among the tokens of one picture; those over time want the frames of a video."""

from __future__ import annotations

from lmmprune.passes.methods import METHODS

OF_ONE_PICTURE = {name: method for name, method in METHODS.items() if not method.over_time}
