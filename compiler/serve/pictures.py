"""Get the picture of a request: from a data URL, a file below an allowed directory, or an allowed host."""

from __future__ import annotations

import base64
import binascii
import io
import os
import stat
import warnings
from pathlib import Path
from urllib.parse import unquote, urlsplit

from PIL import Image, UnidentifiedImageError

from lmmprune.compiler.runtime.open_picture import open_picture
from lmmprune.compiler.serve.errors import ApiError
from lmmprune.compiler.serve.fetch import fetch
from lmmprune.compiler.serve.options import ServeOptions

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""What is decoded; pillow knows dozens more, one of which starts another program (EPS)."""

_PARAM = "messages"


def read_picture(url: str, options: ServeOptions) -> bytes:
    """Return the bytes of a picture's file; blocks where it is fetched.

    Raises:
        ApiError: The URL is damaged, isn't allowed, or can't be read.
    """
    scheme = url[:16].partition(":")[0].lower()
    if scheme == "data":
        return _from_data(url)
    if scheme == "file":
        return _from_file(url, options.media_path, options.max_body)
    if scheme == "https":
        return fetch(url, options.media_domains, timeout=options.fetch_timeout, limit=options.max_body)
    raise ApiError("image_url: expected a data: URL, or https: or file: where the server allows them", param=_PARAM)


def decode_picture(data: bytes, max_pixels: int) -> Image.Image:
    """Decode a picture within limits, upright and in RGB.

    Raises:
        ApiError: It isn't a picture of ``FORMATS``, or has too many pixels.
        InputError: It is damaged.
    """
    try:
        with warnings.catch_warnings():
            # Our own limit is the stricter reading of the same warning.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ApiError(f"the picture has more than {max_pixels:,} pixels: scale it down", param=_PARAM) from error
    except UnidentifiedImageError as error:
        raise ApiError(f"the picture isn't a {', '.join(FORMATS)} file", param=_PARAM) from error
    except (OSError, ValueError, SyntaxError, MemoryError) as error:
        raise ApiError("the picture is damaged", param=_PARAM) from error
    if image.width * image.height > max_pixels:
        raise ApiError(
            f"the picture has {image.width} x {image.height} pixels, at most {max_pixels:,} are read: scale it down",
            param=_PARAM,
        )
    return open_picture(image)


def _from_data(url: str) -> bytes:
    head, comma, payload = url.partition(",")
    if not comma or not head.lower().endswith(";base64") or not head.lower().startswith("data:image/"):
        raise ApiError("image_url: expected 'data:image/...;base64,' before the data", param=_PARAM)
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError("image_url: the data isn't base64", param=_PARAM) from error


def _from_file(url: str, folder: Path | None, limit: int) -> bytes:
    if folder is None:
        raise ApiError("image_url: this server reads no files", param=_PARAM)
    # The same words for whatever is wrong: whoever asks learns nothing of what else is on this machine.
    refused = ApiError("image_url: no picture can be read there, below the directory that is allowed", param=_PARAM)
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise refused from error
    name = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or "\0" in name or parts.query or parts.fragment:
        raise refused
    try:
        path = Path(name).resolve(strict=True)
        if not Path(name).is_absolute() or not path.is_relative_to(folder.resolve(strict=True)):
            raise refused
        # Without waiting for somebody to write into a pipe of this name.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise refused
            data = file.read(limit + 1)
    except (OSError, ValueError, RuntimeError) as error:
        raise refused from error
    if len(data) > limit:
        raise ApiError(f"image_url: the file has more than {limit:,} bytes", param=_PARAM)
    return data
