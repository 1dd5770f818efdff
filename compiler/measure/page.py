"""What pages of results have in common: one file that needs nothing else, readable by day, by night and on a phone."""

from __future__ import annotations

import base64
from importlib import resources
from typing import Any

from lmmprune.errors import require


def page_environment() -> Any:
    """Return a ``jinja2.Environment`` that escapes all text and refuses what a template doesn't know.

    Raises:
        MissingExtraError: Jinja2 isn't installed.
    """
    jinja2: Any = require("jinja2", "export")
    return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def page_style() -> Any:
    """Return the style sheet, as text that a template doesn't escape."""
    text = (resources.files(__package__) / "page.css").read_text(encoding="utf-8")
    return require("markupsafe", "export").Markup(text)


def table_script() -> Any:
    """Return a script that sorts a table by the column whose head is clicked; without it all is there to read."""
    text = (resources.files(__package__) / "sort.js").read_text(encoding="utf-8")
    return require("markupsafe", "export").Markup(text)


def png_uri(png: bytes) -> str:
    """Return a picture as the address of itself."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
