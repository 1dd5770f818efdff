"""What an export for videos can't be together with."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from lmmprune.compiler.export.request import Request
from lmmprune.compiler.export.values import Auto, Buckets
from lmmprune.errors import InputError
from lmmprune.models.source import Source

if TYPE_CHECKING:
    from lmmprune.passes.methods import Method


def check_frames(request: Request, method: Method) -> Request:
    """Refuse what goes with pictures alone; return the request with what a method over time brings along.

    Raises:
        InputError: Something doesn't go together.
    """
    if request.frames is None:
        if method.over_time and request.tokens is not None:
            raise InputError(f"method '{method.name}' compares the frames of a video: add --frames N")
        return request
    others = {
        "--images": request.images > 1,
        "--tiles": request.tiles is not None,
        "several --image-size": len(request.image_sizes) > 1,
        "--int8": request.int8 is not None,
        "--int4": request.int4 is not None,
        "--ratio auto": isinstance(request.tokens, Auto),
        "--buckets": isinstance(request.tokens, Buckets),
        "--calib, of pictures,": request.calibration is not None,
    }
    if other := next((name for name, given in others.items() if given), None):
        raise InputError(f"--frames and {other} don't go together yet: leave one out")
    joint = request.joint or (method.over_time and request.tokens is not None)
    return dataclasses.replace(request, joint=joint)


def of_views(request: Request, source: Source) -> Request:
    """Return a request for videos as one for so many pictures, the views of one."""
    if source.frames is None or source.family.video is None:
        return request
    return dataclasses.replace(request, images=source.frames // source.family.video.patch)
