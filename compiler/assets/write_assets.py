"""The files beside the graphs that the run-time needs, and the prompt: all of it read before the first slow step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmmprune.compiler.assets.chat_template import ChatTemplate, find_chat_template
from lmmprune.compiler.assets.checkpoint_tokenizer import CheckpointTokenizer, checkpoint_tokenizer
from lmmprune.compiler.assets.generation import Generation, generation
from lmmprune.compiler.assets.image_processor import image_processor, preprocessing
from lmmprune.compiler.assets.image_token import find_image_token
from lmmprune.compiler.assets.prompt_template import (
    BUILT_IN,
    OPTION,
    PromptTemplate,
    given_template,
    plain_template,
    rendered_template,
    text_template,
)
from lmmprune.compiler.assets.tile_settings import grids_step, not_exported, processor_grids, whole_tiles
from lmmprune.compiler.bundle.bundle import PREPROCESSOR, TOKENIZER
from lmmprune.compiler.bundle.manifest import Prompt
from lmmprune.compiler.bundle.tile_grids import Grid
from lmmprune.errors import ModelError
from lmmprune.models.registry import tiny_llava_dir
from lmmprune.models.source import Source


@dataclass(frozen=True, kw_only=True)
class Assets:
    """What a bundle says of its prompts, and what the user should know of it."""

    prompt: Prompt
    generation: Generation
    warnings: tuple[str, ...] = ()


def write_assets(
    source: Source, directory: Path, template: str | None = None, *, images: int = 1, grids: Sequence[Grid] = ()
) -> Assets:
    """Write ``tokenizer.json`` and ``preprocessor.json`` and return the prompt.

    An architecture without a checkpoint borrows tiny-llava's tokenizer: its answers mean nothing anyway.

    Args:
        source: The model.
        directory: The bundle.
        template: ``--template``, a file or a text; None: the checkpoint's own.
        images: Pictures that a prompt may have at most.
        grids: Of tiles that a picture may be cut into, where the tower sees them one by one; none: one image.

    Raises:
        ModelError: The checkpoint lacks the files, has them in a form that isn't known, or its template doesn't repeat
            what it writes for a picture.
        InputError: The given template can't be used.
    """
    origin = _origin(source)
    tokens = checkpoint_tokenizer(origin)
    (directory / TOKENIZER).write_text(tokens.text, encoding="utf-8")
    missing = _write_preprocessor(source, directory / PREPROCESSOR, grids)
    image_token, image_token_id = find_image_token(source, origin, tokens)
    found = _template(source, origin, tokens, image_token, template)
    if images > 1 and not found.unit:
        raise ModelError(
            f"--images {images}: the template from {found.origin} doesn't put several pictures one after the other:"
            f" give another one with {OPTION}"
        )
    answers = generation(origin, tokens)
    prompt = Prompt(
        template=found.text,
        image_token=image_token,
        image_token_id=image_token_id,
        eos_token_ids=answers.end_tokens,
        special_tokens=tokens.adds_special_tokens(found.text),
        strip=found.strip,
        origin=found.origin,
        turn=found.turn,
        answer_strip=found.answer_strip,
        unit=found.unit if images > 1 else "",
        inline=found.inline if images > 1 else "",
        bare=found.bare if images > 1 else "",
    )
    # An architecture that borrows a tokenizer gives no answers that could differ.
    said = answers.warnings if source.directory else ()
    return Assets(prompt=prompt, generation=answers, warnings=(*tokens.warnings, *found.warnings, *missing, *said))


def image_token_id(source: Source) -> int:
    """Return the id of the image placeholder in the tokenizer that the bundle gets."""
    origin = _origin(source)
    return find_image_token(source, origin, checkpoint_tokenizer(origin))[1]


def _origin(source: Source) -> Path:
    return source.directory or tiny_llava_dir()


def _write_preprocessor(source: Source, file: Path, grids: Sequence[Grid]) -> tuple[str, ...]:
    """Write the steps; return what the user should know of them."""
    raw = {**image_processor(_origin(source)), **source.family.processor}
    height, width = source.vision.image_size
    if source.vision.any_size:
        # The export has fixed the size: pictures of every shape are stretched to it.
        raw |= {"size": {"height": height, "width": width}, "do_center_crop": False}
    elif source.directory is None and grids:
        raw |= whole_tiles(source)
    elif source.directory is None:
        raw |= {"size": {"shortest_edge": min(height, width)}, "crop_size": {"height": height, "width": width}}
    steps = preprocessing(raw, source.vision.image_size, source.tiles)
    if grids:
        steps["grids"] = grids_step(source, raw, grids)
    file.write_text(json.dumps(steps, indent=2) + "\n", encoding="utf-8")
    return not_exported(processor_grids(source, raw), grids) if grids else ()


def _template(
    source: Source, origin: Path, tokens: CheckpointTokenizer, image_token: str, option: str | None
) -> PromptTemplate:
    """Take the given template, or the checkpoint's own chat template; without either, the family's with a warning."""
    family = source.family
    chosen: ChatTemplate | str | None = None
    if option is not None:
        chosen = given_template(option)
    elif source.directory is not None:
        chosen = find_chat_template(origin)
    if isinstance(chosen, str):
        return plain_template(chosen, family, image_token)
    if chosen is not None:
        return rendered_template(chosen, tokens.special, family, image_token)
    text = family.template.replace(family.image_token, image_token)
    warnings = []
    if source.directory is not None:
        early = f" (early revisions of {family.title} on the hub have none)" if family.early_template else ""
        warnings.append(
            f"'{origin}' has no chat template{early}: questions are put as {text!r}, which is {family.title}'s own"
            f" form; {OPTION} gives another"
        )
    return text_template(text, family, image_token, BUILT_IN, warnings=tuple(warnings))
