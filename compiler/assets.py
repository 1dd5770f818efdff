"""The files beside the graphs that the run-time needs: tokenizer, preprocessing steps, prompt template, end tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

from lmmprune.compiler.bundle import PREPROCESSOR, TOKENIZER
from lmmprune.compiler.manifest import Prompt
from lmmprune.errors import ModelError
from lmmprune.models.registry import FAMILIES, tiny_llava_dir
from lmmprune.models.source import Source


def write_assets(source: Source, directory: Path) -> Prompt:
    """Write ``tokenizer.json`` and ``preprocessor.json`` and return the prompt.

    An architecture without a checkpoint borrows tiny-llava's tokenizer: its answers mean nothing anyway.

    Raises:
        ModelError: The checkpoint lacks the files, or has them in a form that isn't known.
    """
    origin = source.directory or tiny_llava_dir()
    if not (origin / TOKENIZER).is_file():
        raise ModelError(f"no {TOKENIZER} in '{origin}': save the processor's fast tokenizer into it")
    shutil.copyfile(origin / TOKENIZER, directory / TOKENIZER)
    raw = {**_image_processor(origin), **source.family.processor}
    height, width = source.vision.image_size
    if source.vision.any_size:
        # The export has fixed the size: pictures of every shape are stretched to it.
        raw |= {"size": {"height": height, "width": width}, "do_center_crop": False}
    elif source.directory is None:
        raw |= {"size": {"shortest_edge": min(height, width)}, "crop_size": {"height": height, "width": width}}
    steps = preprocessing(raw, source.vision.image_size, source.tiles)
    (directory / PREPROCESSOR).write_text(json.dumps(steps, indent=2) + "\n", encoding="utf-8")
    token = _image_token(source)
    return Prompt(
        template=_template(origin, source),
        image_token=token,
        image_token_id=image_token_id(source),
        eos_token_ids=_end_tokens(origin),
    )


def image_token_id(source: Source) -> int:
    """Return the id of the image placeholder in the tokenizer that the bundle gets."""
    tokenizer = _json((source.directory or tiny_llava_dir()) / TOKENIZER)
    ids = {row["content"]: row["id"] for row in tokenizer.get("added_tokens", [])}
    token = _image_token(source)
    if token not in ids:
        raise ModelError(f"the tokenizer has no token '{token}', which marks the picture's place")
    return int(ids[token])


def _image_token(source: Source) -> str:
    """Return the text of the placeholder: the family's own, or that of the tokenizer which is borrowed."""
    return source.family.image_token if source.directory else FAMILIES["llava"].image_token


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


def _image_processor(origin: Path) -> dict[str, Any]:
    if (origin / "processor_config.json").is_file():
        part = _json(origin / "processor_config.json").get("image_processor")
        if isinstance(part, dict):
            return part
    if (origin / "preprocessor_config.json").is_file():
        return _json(origin / "preprocessor_config.json")
    raise ModelError(f"no preprocessor_config.json or processor_config.json in '{origin}': save the processor into it")


def _template(origin: Path, source: Source) -> str:
    """Render the checkpoint's own chat template around ``{prompt}``; without one, take the family's."""
    template = _chat_template(origin)
    if template is None or source.directory is None:
        return source.family.template.replace(source.family.image_token, _image_token(source))
    from transformers.utils.chat_template_utils import render_jinja_template

    content = [{"type": "image"}, {"type": "text", "text": "{prompt}"}]
    render: Any = render_jinja_template  # annotated as str, but it returns the texts and their masks
    texts, _ = render([[{"role": "user", "content": content}]], chat_template=template, add_generation_prompt=True)
    text: str = texts[0]
    token = source.family.image_token
    if text.count("{prompt}") != 1 or text.count(token) != 1:
        raise ModelError(f"the chat template renders to {text!r}: expected one picture and one question")
    return text.replace(token, source.family.picture or token)


def _chat_template(origin: Path) -> str | None:
    if (origin / "chat_template.jinja").is_file():
        return (origin / "chat_template.jinja").read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (origin / name).is_file():
            found = _json(origin / name).get("chat_template")
            if isinstance(found, str) and "image" in found:
                return found
    return None


def _end_tokens(origin: Path) -> tuple[int, ...]:
    places = [_json(origin / name) for name in ("generation_config.json", "config.json") if (origin / name).is_file()]
    for place in [*places, *(place.get("text_config", {}) for place in places)]:
        end = place.get("eos_token_id")
        if end is not None:
            return tuple(int(token) for token in end) if isinstance(end, list) else (int(end),)
    raise ModelError(f"no eos_token_id in generation_config.json or config.json of '{origin}': answers would never end")


def _json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"'{path}' can't be read ({error})") from error
    if not isinstance(raw, dict):
        raise ModelError(f"'{path}' holds {type(raw).__name__}, expected an object")
    return raw
