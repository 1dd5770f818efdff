"""Open pictures as transformers' ``load_image`` does, upright and in RGB, within limits and with what there is to say.

One thing differs: what is transparent is laid over white, as transformers' image processors do; its ``load_image``
drops transparency before they see the picture.
"""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lmmprune.errors import InputError, LmmpruneWarning

Picture = Path | str | bytes | bytearray | memoryview | BinaryIO | Image.Image
"""Whatever a picture can be read from."""

MAX_PIXELS = 100_000_000
"""Pictures with more pixels are refused before they are decoded: a small file can unpack to gigabytes."""


FORMATS = ("PNG", "JPEG", "GIF", "BMP", "PPM", "MPO", "WEBP", "TIFF", "JPEG2000", "AVIF", "ICO", "TGA", "DIB")
"""What is read, the kinds that pillow has ready first. Others of its readers start programs (EPS: Ghostscript)."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a picture of any mode to RGB; transparency is laid over white."""
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image.convert("RGB")


def load_image(path: Path | str) -> Image.Image:
    """Read a picture from disk, turned upright as its EXIF orientation says.

    Warns (``LmmpruneWarning``) of values that don't fit into a byte: they are clipped.

    Raises:
        InputError: The file is missing, isn't a picture, is damaged, or has more than ``MAX_PIXELS`` pixels.
    """
    try:
        return _open(Path(path), str(path))
    except FileNotFoundError as error:
        raise InputError(f"there is no picture '{path}'") from error
    except IsADirectoryError as error:
        raise InputError(f"'{path}' is a directory: give a picture") from error


def decode_image(data: bytes, name: str) -> Image.Image:
    """Read a picture from the bytes of its file, as ``load_image`` does; ``name`` is what messages call it.

    Raises:
        InputError: It isn't a picture, is damaged, or has more than ``MAX_PIXELS`` pixels.
    """
    return _open(io.BytesIO(data), name)


def open_picture(picture: Picture) -> Image.Image:
    """Read a picture from wherever it is, as ``load_image`` does.

    Args:
        picture: Its path, the bytes of its file, an open binary file (read from where it stands), or a PIL image.

    Raises:
        InputError: It isn't one of these, or as ``load_image``.
    """
    if isinstance(picture, Image.Image):
        return _open(picture, getattr(picture, "filename", "") or "an image in memory")
    if isinstance(picture, (bytes, bytearray, memoryview)):
        return decode_image(bytes(picture), "bytes in memory")
    if isinstance(picture, (str, Path)):
        return load_image(picture)
    data = picture.read() if hasattr(picture, "read") else None
    if not isinstance(data, bytes):
        kind = "a file open for text" if isinstance(data, str) else f"a {type(picture).__name__}"
        raise InputError(f"the picture is {kind}: give a path, the bytes of a file, a binary file or a PIL image")
    return decode_image(data, str(getattr(picture, "name", "an open file")))


def _open(source: Path | io.BytesIO | Image.Image, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Our own limit below is the stricter reading of the same warning.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = source if isinstance(source, Image.Image) else _read(source)
        if not 0 < image.width * image.height <= MAX_PIXELS:
            raise InputError(
                f"picture '{name}' has {image.width} x {image.height} pixels, at most {MAX_PIXELS:,} are read: "
                "scale it down"
            )
        image.load()
        if fault := _beyond_bytes(image):
            warnings.warn(f"picture '{name}' {fault}; save it with 8 bits", LmmpruneWarning, stacklevel=3)
        return ImageOps.exif_transpose(image)
    except (FileNotFoundError, IsADirectoryError):
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"picture '{name}' has more than {MAX_PIXELS:,} pixels: scale it down") from error
    except UnidentifiedImageError as error:
        raise InputError(f"'{name}' isn't a picture that pillow can read ({', '.join(FORMATS)})") from error
    except (OSError, ValueError, SyntaxError, struct.error, MemoryError) as error:
        raise InputError(f"picture '{name}' is damaged or can't be read ({error})") from error


def _read(source: Path | io.BytesIO) -> Image.Image:
    Image.preinit()
    if (image := _of_kinds(source)) is None:
        Image.init()  # loads the readers of all kinds, which takes a while
        image = _of_kinds(source)
    if image is None:
        raise UnidentifiedImageError
    return image


def _of_kinds(source: Path | io.BytesIO) -> Image.Image | None:
    """Open a picture of a kind that is served and whose reader is loaded; None: it is no such picture."""
    if isinstance(source, io.BytesIO):
        source.seek(0)
    with contextlib.suppress(UnidentifiedImageError):
        return Image.open(source, formats=[name for name in FORMATS if name in Image.OPEN])
    return None


def _beyond_bytes(image: Image.Image) -> str:
    """Say what becomes of values that the reference clips to 0..255 too; empty: they fit."""
    if not image.mode.startswith(("I", "F")):
        return ""
    values = np.asarray(image)
    kind = "floating-point" if image.mode == "F" else "16-bit" if image.mode.startswith("I;16") else "32-bit"
    low, high = values.min(), values.max()
    if not np.isfinite(high) or high > 255 or low < 0:
        return f"has {kind} values of {low:g} to {high:g}: all above 255 turn white, as in transformers"
    return f"has {kind} values of {low:g} to {high:g}: it turns black, as in transformers" if high <= 1 else ""
