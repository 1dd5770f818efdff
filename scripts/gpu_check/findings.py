"""What a stage has found so far, and how one variant that breaks leaves the others theirs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gpu_check.settings import Save
from lmmprune.errors import LmmpruneError


class Findings:
    """A stage's ``data``, with the reason of each part that couldn't be had under ``reasons``."""

    def __init__(self, save: Save, **data: Any) -> None:
        self.data: dict[str, Any] = {**data, "reasons": {}}
        self._save = save

    def put(self, **data: Any) -> None:
        """Add something, and keep it."""
        self.data |= data
        self._save(self.data)

    @contextmanager
    def guard(self, part: str) -> Iterator[None]:
        """Go on behind the block if it raises, with the reason kept."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  # whatever breaks on an untried machine, the other parts' numbers count
            kind = "" if isinstance(error, LmmpruneError) else f"{type(error).__name__}: "
            self.data["reasons"][part] = f"{kind}{error}"
            self.put()
