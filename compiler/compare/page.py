"""Write a comparison as one HTML page: the figures, and the examples that came out worst, with what was kept."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from lmmprune.compiler.bundle.atomic import replace_file
from lmmprune.compiler.bundle.replace import check_file
from lmmprune.compiler.compare.comparison import Comparison
from lmmprune.compiler.measure.page import page_environment, page_style, png_uri
from lmmprune.compiler.measure.statistics import RESAMPLES, Estimate
from lmmprune.errors import InputError
from lmmprune.units import human_bytes

_TEMPLATE = "page.html.jinja"


def check_page(path: Path, *, force: bool) -> None:
    """Refuse a page that couldn't be written, before anything is measured for it.

    Raises:
        InputError: Its folder doesn't exist, or it is there and ``force`` isn't given.
        MissingExtraError: Jinja2 isn't installed.
    """
    page_environment()
    if not path.parent.is_dir():
        raise InputError(f"can't write the page '{path}': there is no directory '{path.parent}'")
    check_file(path, force=force, option="--html")


def write_page(comparison: Comparison, path: Path) -> None:
    """Write the page.

    Raises:
        InputError: The file can't be written.
    """
    try:
        with replace_file(path) as stream:
            stream.write(html(comparison).encode())
    except OSError as error:
        raise InputError(f"can't write the page '{path}' ({error.strerror or error})") from error


def html(comparison: Comparison) -> str:
    """Return the page."""
    environment = page_environment()
    environment.filters |= {
        "bytes": human_bytes,
        "number": _number,
        "percent": _percent,
        "points": _points,
        "uri": png_uri,
    }
    text = (resources.files(__package__) / _TEMPLATE).read_text(encoding="utf-8")
    page: str = environment.from_string(text).render(comparison=comparison, style=page_style(), resamples=RESAMPLES)
    return page


def _percent(one: Estimate) -> str:
    return f"{100 * one.value:.1f} ({100 * one.low:.1f} to {100 * one.high:.1f})"


def _points(one: Estimate) -> str:
    return f"{100 * one.value:+.1f} ({100 * one.low:+.1f} to {100 * one.high:+.1f})"


def _number(one: Estimate) -> str:
    return f"{one.value:.3g} ({one.low:.3g} to {one.high:.3g})"
