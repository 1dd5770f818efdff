"""Turn a Hugging Face image processor's settings into ``preprocessor.json``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from PIL import Image

from lmmprune.compiler.assets.quiet import quiet_transformers
from lmmprune.errors import ModelError
from lmmprune.models.read_json import read_json, read_json_if_there

# The steps that ``preprocessor.json`` can express; a picture always becomes RGB before them.
_STEPS = ("resize", "center_crop", "rescale", "normalize")
_SIZES = ({"shortest_edge"}, {"height", "width"})
# What the classes of transformers do where 'do_pad' is on.
_PADS_TO_SQUARE = ("LlavaImageProcessor",)
_PADS_BATCHES = ("CLIPImageProcessor", "SiglipImageProcessor")
# Above it Idefics3's processor makes pictures smaller once more.
_LONGEST = 4096


def preprocessing(
    raw: dict[str, Any], image_size: tuple[int, int], tiles: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Turn a Hugging Face image processor's settings into ``preprocessor.json``.

    CLIP's processor (shortest edge, then a centre crop), SigLIP's (straight to height and width) and Idefics3's without
    splitting (longest edge, then a square) fit in, and LLaVA's 'anyres' ones with a fixed grid of tiles; others that
    pad or split pictures don't.

    Args:
        raw: Content of ``preprocessor_config.json`` (or the ``image_processor`` part of ``processor_config.json``).
        image_size: Height and width that the tower takes, in pixels.
        tiles: Rows and columns of tiles; None: the picture goes in as a whole.

    Raises:
        ModelError: A step that can't be expressed, a setting that is missing, or a result of another size.
    """
    name = raw.get("image_processor_type") or "the image processor"
    square = bool(raw.get("do_pad")) and _kind(name) in _PADS_TO_SQUARE and not tiles
    # Others pad the pictures of a batch to one size, which a single picture has already.
    pads = tiles or square or (_kind(name) in _PADS_BATCHES and raw.get("pad_size") is None)
    known = {"do_convert_rgb", *(f"do_{step}" for step in _STEPS), *(["do_pad"] if pads else ())}
    if other := [key for key, value in raw.items() if key.startswith("do_") and value and key not in known]:
        raise ModelError(f"{name} has '{other[0]}' on, which the run-time doesn't do: it takes {', '.join(_STEPS)}")
    on = {step: raw.get(f"do_{step}", True) for step in _STEPS}
    needed = {"size": on["resize"], "image_mean": on["normalize"], "image_std": on["normalize"]}
    if lost := [key for key, used in needed.items() if used and raw.get(key) is None]:
        raise ModelError(f"{name} states no '{lost[0]}': save the processor again with save_pretrained")
    size = raw["size"] if isinstance(raw.get("size"), dict) else {"shortest_edge": raw.get("size")}
    longest = None
    if side := raw.get("max_image_size"):
        longest = size.get("longest_edge") if on["resize"] else None
        if longest is not None and longest > _LONGEST:
            raise ModelError(f"{name} first makes the longest edge {longest} pixels: expected {_LONGEST} at most")
        on["resize"], size = True, {"height": side["longest_edge"], "width": side["longest_edge"]}
    if on["resize"] and set(size) not in _SIZES:
        raise ModelError(f"{name} resizes to {sorted(size)}: expected shortest_edge, or height and width")
    crop = raw.get("crop_size")
    crop = [crop["height"], crop["width"]] if isinstance(crop, dict) else crop and [crop, crop]
    resize = size if on["resize"] else {}
    steps = {
        "resize": resize or None,
        "resample": Image.Resampling(raw.get("resample", Image.Resampling.BICUBIC)).name.lower(),
        "crop": crop if on["center_crop"] else None,
        "rescale": raw.get("rescale_factor", 1 / 255) if on["rescale"] else None,
        "mean": raw["image_mean"] if on["normalize"] else None,
        "std": raw["image_std"] if on["normalize"] else None,
    }
    if longest is not None:
        steps["longest_edge"] = longest
    if square:
        steps["square"] = [int(part * 255) for part in raw.get("image_mean") or (0, 0, 0)]
    final = steps["crop"] or [resize.get("height"), resize.get("width")]
    if list(final) != list(image_size):
        found = "pictures of no fixed size" if None in final else f"{final} pixels"
        raise ModelError(f"{name} makes {found}, the vision tower takes {list(image_size)}")
    if tiles and not on["resize"]:
        raise ModelError(f"{name} doesn't resize: expected 'do_resize', for the overview of a picture of tiles")
    return steps | {"tiles": list(tiles)} if tiles else steps


def _kind(name: str) -> str:
    return name.removesuffix("Pil").removesuffix("Fast")


def image_processor(origin: Path) -> dict[str, Any]:
    """Return the settings of the image processor in a directory, as transformers completes them.

    What a file doesn't state is the default of the processor's class, and a size may be a number, which each class
    understands in its own way.

    Raises:
        ModelError: There are none.
    """
    raw = _stated(origin)
    try:
        with quiet_transformers():
            loaded = _load(origin)
    except Exception:  # noqa: BLE001 - of a class that isn't known, or wants packages: then what the file states counts
        return raw
    found = {key: _plain(getattr(loaded, key)) for key in {*_SETTINGS, *raw} if hasattr(loaded, key)}
    return {**raw, **found, "image_processor_type": _kind(type(loaded).__name__)}


_SETTINGS = (
    *(f"do_{step}" for step in _STEPS),
    *("do_pad", "pad_size", "size", "crop_size", "resample", "rescale_factor", "image_mean", "image_std"),
    *("max_image_size", "min_patches", "max_patches"),
)


def _load(origin: Path) -> Any:
    from transformers import AutoImageProcessor

    # The processors that work on pillow's pictures: the run-time does as they do.
    auto: Any = AutoImageProcessor  # its class method has no types
    return auto.from_pretrained(origin, backend="pil", trust_remote_code=False, local_files_only=True)


def _plain(value: Any) -> Any:
    """Return a setting as JSON has it: a size is an object of its own in transformers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {key: part for key, part in dataclasses.asdict(value).items() if part is not None} or None
    return list(value) if isinstance(value, tuple) else value


def _stated(origin: Path) -> dict[str, Any]:
    part = read_json_if_there(origin / "processor_config.json").get("image_processor")
    if isinstance(part, dict):
        return part
    if (origin / "preprocessor_config.json").is_file():
        return read_json(origin / "preprocessor_config.json")
    raise ModelError(f"no preprocessor_config.json or processor_config.json in '{origin}': save the processor into it")
