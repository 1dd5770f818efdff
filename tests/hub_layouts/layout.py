"""What a layout states: whose it is, how its files are written, and what has to come of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The files of a published checkpoint, at tiny sizes and with random weights.

    Attributes:
        name: Short name, for tables and ``--only``.
        hub_id: Whose layout it is; empty for a kind of folder that belongs to no checkpoint alone.
        family: The family that serves it; empty where none does.
        write: Writes the files into an empty folder, with so many decoder layers.
        hub_model: What ``--model`` takes where the folder is the hub's cache; empty: the folder itself.
        line: What the one line of a refusal must hold (regular expressions), where no family serves it.
        export: Settings of every export: the picture's size, the grid of tiles.
        refused: Command -> what the line of its refusal must hold, where the family serves less than everything.
        processor: Settings of transformers' processor: what its files leave out, and what keeps a picture whole.
        call: Further settings of each call of it.
        template: The chat template that is meant, where the files hold none.
        picture: Width and height of the picture that is asked about.
        commands: Those that the tests try; the script tries all.
        layers: Decoder layers in the tests, where every layer takes seconds to trace; the script takes 3.
    """

    name: str
    hub_id: str = ""
    family: str = ""
    write: Callable[[Path, int], None]
    hub_model: str = ""
    line: tuple[str, ...] = ()
    export: Mapping[str, Any] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    processor: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)
    template: str = ""
    picture: tuple[int, int] = (90, 64)
    commands: tuple[str, ...] = ("plain",)
    layers: int = 1

    @property
    def served(self) -> bool:
        """Whether a family serves it."""
        return bool(self.family)
