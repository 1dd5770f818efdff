"""Turn a Hugging Face image processor's settings into ``preprocessor.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from lmmprune.compiler.read_json import read_json
from lmmprune.errors import ModelError

# The steps that ``preprocessor.json`` can express; a picture always becomes RGB before them.
_STEPS = ("resize", "center_crop", "rescale", "normalize")
_SIZES = ({"shortest_edge"}, {"height", "width"})
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
    name = raw.get("image_processor_type", "the image processor")
    known = {"do_convert_rgb", *(f"do_{step}" for step in _STEPS), *(["do_pad"] if tiles else ())}
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
    final = steps["crop"] or [resize.get("height"), resize.get("width")]
    if list(final) != list(image_size):
        found = "pictures of no fixed size" if None in final else f"{final} pixels"
        raise ModelError(f"{name} makes {found}, the vision tower takes {list(image_size)}")
    if tiles and not on["resize"]:
        raise ModelError(f"{name} doesn't resize: expected 'do_resize', for the overview of a picture of tiles")
    return steps | {"tiles": list(tiles)} if tiles else steps


def image_processor(origin: Path) -> dict[str, Any]:
    """Return the settings of the image processor in a directory.

    Raises:
        ModelError: There are none.
    """
    if (origin / "processor_config.json").is_file():
        part = read_json(origin / "processor_config.json").get("image_processor")
        if isinstance(part, dict):
            return part
    if (origin / "preprocessor_config.json").is_file():
        return read_json(origin / "preprocessor_config.json")
    raise ModelError(f"no preprocessor_config.json or processor_config.json in '{origin}': save the processor into it")
