"""Hold a bundle's prompts against the checkpoint's own processor, token for token.

Everything else that ``verify`` compares goes on from the bundle's own tokens: a wrong prompt would show nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from PIL import Image

from lmmprune.compiler.assets.chat_template import find_chat_template
from lmmprune.compiler.assets.prompt_template import BUILT_IN, OPTION
from lmmprune.compiler.assets.quiet import quiet_transformers
from lmmprune.compiler.bundle.bundle import PREPROCESSOR, TOKENIZER, Bundle
from lmmprune.compiler.bundle.tile_grids import Grid, images_of, named
from lmmprune.compiler.runtime.preprocess import Preprocessor
from lmmprune.compiler.runtime.prompt import Prompter
from lmmprune.compiler.runtime.tile_rule import COVER
from lmmprune.errors import InputError, LmmpruneError, said
from lmmprune.models import private_names
from lmmprune.models.source import Source

# Ends with white space, letters of several bytes, new lines, and enough words for a method that drops some.
_QUESTIONS = (
    "What is in the picture?",
    " How many people are there on the left, and what do they do? ",
    "Antworte kurz:\n\nWelche Farbe hat das Fähnchen? 什么颜色？ 🙂",
    "3, 2, 1",
)

# A part of processors that wants torchvision; pictures don't need it.
_VIDEO = "video_processor"

Verdict = tuple[bool | None, str]


def compare_prompts(bundle: Bundle, source: Source) -> Verdict | None:
    """Compare some prompts.

    Args:
        bundle: The bundle.
        source: Its model.

    Returns:
        Whether they are the same (None: it can't be told), and what was found; None where the checkpoint has no chat
        template, which the export said: there is nothing that they could be held against.
    """
    origin = bundle.manifest.prompt.origin
    if origin == OPTION:
        return _not_compared(f"the template was given with {OPTION}")
    if source.directory is None:
        return _not_compared("there is no checkpoint, the tokenizer is tiny-llava's")
    if origin == BUILT_IN:
        return None
    try:
        with quiet_transformers():
            processor = _processor(source)
    except Exception as error:  # noqa: BLE001 - whatever its files, its packages or its template make it raise
        return _not_compared(f"the checkpoint's processor fails ({said(error)})")
    prompter = Prompter(bundle.manifest, bundle.file(TOKENIZER))
    compared = 0
    images = bundle.manifest.images
    counts = [bundle.manifest.vision_tokens]
    least = images if bundle.manifest.joint else 1
    several = [(_QUESTIONS[0], images)] if images > least else []
    shapes = _shapes(bundle, source)
    for shape in shapes:
        grid = shape.grid
        try:
            with quiet_transformers():
                theirs = _asked(processor, source, shape)
        except Exception as error:  # noqa: BLE001 - as above
            return _not_compared(f"the checkpoint's processor fails ({said(error)})")
        # What a question does to a prompt it does whatever the picture's grid.
        questions = _QUESTIONS if shape is shapes[0] else _QUESTIONS[:1]
        for question, pictures in [*((question, least) for question in questions), *several]:
            grids, runs = (None, 1) if grid is None else ([grid] * pictures, images_of(grid))
            try:
                encoded = prompter.encode(question, image_tokens=counts * pictures * runs, grids=grids)
            except InputError:  # too short for a method that drops words
                continue
            mine = encoded.input_ids[0].tolist()
            try:
                with quiet_transformers():
                    wanted = theirs(question, pictures)
            except Exception as error:  # noqa: BLE001 - as above
                return _not_compared(f"the checkpoint's processor fails on {question!r} ({said(error)})")
            fault = _difference(bundle, mine, wanted, pictures * runs)
            if not fault and grid is not None:
                fault = _uncounted(processor, wanted.count(bundle.manifest.prompt.image_token_id), pictures * runs)
            if fault and _dated(source):
                return _not_compared("the chat template writes today's date")
            if fault:
                return False, f"{question!r}: {fault}"
            compared += 1
    if not shapes:
        return _not_compared("the processor cuts no picture into any of the bundle's grids of tiles")
    if not compared:
        return _not_compared("the bundle takes none of the questions")
    about = f", one of {images} pictures," if several else f" of {images} pictures" if images > 1 else ""
    tiles = (
        f" in {', '.join(named(shape.grid) for shape in shapes if shape.grid)} tiles"
        if bundle.manifest.tile_grids
        else ""
    )
    return True, f"{compared} questions{about}{tiles} as transformers' processor puts them, token for token"


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """A picture to ask about: its width and height, the grid that it is cut into, and settings that see to it."""

    size: tuple[int, int]
    grid: Grid | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def _shapes(bundle: Bundle, source: Source) -> list[_Shape]:
    """Return one picture, or one for each grid of tiles that the processor cuts into too."""
    height, width = source.vision.image_size
    tiles, split = bundle.manifest.tile_grids, source.family.split
    if tiles is None or split is None:
        return [_Shape(size=(width, height))]
    preprocessor = Preprocessor.load(bundle.file(PREPROCESSOR))
    found = []
    for grid in tiles.grids:
        size = (grid[1] * width, grid[0] * height)
        picked = preprocessor.pick(Image.new("RGB", size))
        if split.rule == COVER:
            # It makes every picture's longer edge as many tiles long as it is told.
            longest = {"size": {"longest_edge": max(size)}}
            found.append(_Shape(size=size, grid=grid, settings={**split.settings, **longest}))
        elif picked is not None and picked.own == grid:
            found.append(_Shape(size=size, grid=grid, settings=split.settings))
    return found


def _not_compared(why: str) -> Verdict:
    return None, f"not compared: {why}"


def _processor(source: Source) -> Any:
    """Return the processor as transformers loads it; without its part for videos where that is what can't be."""
    from transformers import AutoProcessor
    from transformers.processing_utils import ProcessorMixin

    auto: Any = AutoProcessor  # its class method has no types
    try:
        found = auto.from_pretrained(source.directory, trust_remote_code=False, local_files_only=True)
    except (ImportError, ValueError) as error:
        own = private_names.processor_class(source.config)
        if _VIDEO not in private_names.parts_of(own):
            raise

        try:
            found = private_names.without_part(own, _VIDEO).from_pretrained(source.directory, local_files_only=True)
        except Exception:  # noqa: BLE001 - then the first error says what is missing
            raise error from None
    if not isinstance(found, ProcessorMixin):
        raise TypeError(f"transformers finds a {type(found).__name__} only")
    # How many places a picture takes isn't compared, and older files leave out what a processor counts them by.
    counted = {"patch_size": source.vision.image_size[0] // source.vision.grid[0], "num_image_tokens": 1}
    for name, value in counted.items():
        if getattr(found, name, value) is None:
            setattr(found, name, value)
    return found


def _asked(processor: Any, source: Source, shape: _Shape) -> Callable[[str, int], list[int]]:
    """Return what gives the processor's tokens of a question, with so many pictures of this shape."""
    from transformers.processing_utils import ProcessorMixin

    image = Image.new("RGB", shape.size, "gray")
    # A processor doesn't read the template in its tokenizer's file, but takes it.
    template = None if processor.chat_template else processor.tokenizer.get_chat_template()
    settings = {key: value for key, value in source.family.processor.items() if key != "do_pad"}
    settings |= {**shape.settings, "padding": False, "truncation": False}
    token = getattr(processor, "image_token", source.family.image_token)

    def apply(content: Any, **more: Any) -> list[int]:
        # SmolVLM's own method differs from it for videos only, and asks the part for them.
        ask: Any = ProcessorMixin.apply_chat_template  # annotated as str
        ids = ask(
            processor,
            [{"role": "user", "content": content}],
            chat_template=template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={**settings, **more},
        )["input_ids"]
        found: list[int] = list(ids[0])
        return found

    inline = source.family.inline or f"{token}\n"
    # In the order in which an export tries them: a template that takes texts only gets the picture inside.
    forms: tuple[Callable[[str, int], list[int]], ...] = (
        lambda question, n: apply([*[{"type": "image", "image": image}] * n, {"type": "text", "text": question}]),
        lambda question, n: apply(inline * n + question, images=[image] * n),
        lambda question, n: apply([{"type": "text", "text": inline * n + question}], images=[image] * n),
    )
    first: Exception | None = None
    for form in forms:
        try:
            form(_QUESTIONS[0], 1)
        except Exception as error:  # noqa: BLE001 - a template raises what it likes
            first = first or error
        else:
            return form
    assert first is not None
    raise first


def _difference(bundle: Bundle, mine: list[int], wanted: list[int], pictures: int) -> str:
    """Return the first place that differs, runs of a picture's placeholder taken as one; empty: none."""
    image = bundle.manifest.prompt.image_token_id
    (ours, tokens), (theirs, expected) = _runs(mine, image), _runs(wanted, image)
    if ours == theirs:
        # Where nothing stands between pictures, they are one run.
        same = 1 <= tokens == expected <= pictures
        return "" if same else f"{tokens} pictures, the processor's has {expected}"
    place = next((at for at, (one, other) in enumerate(zip(ours, theirs)) if one != other), min(len(ours), len(theirs)))  # noqa: B905 - the shorter one ends it
    return f"token {place} is {_shown(ours, place)}, the processor's is {_shown(theirs, place)}"


def _uncounted(processor: Any, places: int, runs: int) -> str:
    """Return what is wrong with the number of images, by the places that the processor says an image takes."""
    each = getattr(processor, "image_seq_len", None) or getattr(processor, "image_seq_length", None)
    same = each is None or places == runs * each
    return "" if same else f"{runs} images, the processor's has {places} places of {each} each"


def _runs(ids: list[int], image: int) -> tuple[list[int], int]:
    found: list[int] = []
    runs = 0
    for token, group in groupby(ids):
        found.extend([token] if token == image else list(group))
        runs += token == image
    return found, runs


def _shown(ids: list[int], place: int) -> str:
    return str(ids[place]) if place < len(ids) else "missing"


def _dated(source: Source) -> bool:
    try:
        found = find_chat_template(source.directory) if source.directory else None
    except LmmpruneError:
        return False
    return found is not None and "strftime_now" in found.text
