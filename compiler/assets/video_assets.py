"""What a checkpoint says of videos: how its processor makes pixels of frames, and what its template writes for one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmmprune.compiler.assets.chat_template import ChatTemplate
from lmmprune.compiler.assets.prompt_template import (
    BUILT_IN,
    PromptTemplate,
    plain_template,
    rendered_template,
    text_template,
)
from lmmprune.compiler.bundle.video import Video
from lmmprune.models.family import Family
from lmmprune.models.read_json import read_json, read_json_if_there
from lmmprune.models.source import Source
from lmmprune.models.video import TOKEN, VideoSpec

# What the run-time does to a frame; whatever else a file states is of pictures, or of how frames are chosen.
_KEYS = (
    *("do_resize", "do_center_crop", "do_rescale", "do_normalize"),
    *("size", "crop_size", "resample", "rescale_factor", "image_mean", "image_std"),
)
_VIDEO = {"type": "video", "video": "clip"}


def video_processor(origin: Path) -> dict[str, Any]:
    """Return the settings of the video processor in a directory, from the file where transformers looks for them.

    The picture processor's hold where no file is of videos. What a file leaves out but has to state, its reader says.
    """
    raw = read_json_if_there(origin / "processor_config.json").get("video_processor")
    if not isinstance(raw, dict):
        own = origin / "video_preprocessor_config.json"
        raw = read_json(own if own.is_file() else origin / "preprocessor_config.json")
    found = {key: raw[key] for key in _KEYS if raw.get(key) is not None}
    # No video processor crops unless told to.
    named = raw.get("video_processor_type") or "the video processor"
    return {"do_center_crop": False, **found, "image_processor_type": named}


def video_of(source: Source, spec: VideoSpec, token: str) -> Video:
    """Return what a bundle says of its videos; ``token`` is the placeholder's text."""
    assert source.frames is not None
    return Video(
        frames=source.frames,
        patch=spec.patch,
        sampling=spec.sampling,
        view=spec.view.replace(TOKEN, token),
        between=spec.between,
        newline=spec.newline,
        together=spec.together and source.decoder.position_rows > 1,
        pace=None if spec.pace is None else spec.pace(source.config),
    )


def video_template(
    chosen: ChatTemplate | str | None, special: Mapping[str, str], family: Family, spec: VideoSpec, token: str
) -> PromptTemplate:
    """Return the template of questions about a video, whose place is the placeholder ``token``, once.

    Args:
        chosen: The chat template, or one that was given as text; None: the family's own form.
        special: Name -> special token.
        family: The model's.
        spec: How it sees a video.
        token: Text of the placeholder.
    """
    # What a template writes for a video is a token of its own, which may not be the placeholder.
    written = special.get("video_token", spec.token)
    bare = dataclasses.replace(family, picture="", inline="", image_token=written)
    if isinstance(chosen, str):
        found = plain_template(chosen.replace(spec.token, written), bare, written)
    elif chosen is not None:
        found = rendered_template(chosen, special, bare, written, part=_VIDEO)
    else:
        text = family.template.replace(family.picture or family.image_token, written)
        found = text_template(text, bare, written, BUILT_IN)
    return dataclasses.replace(found, text=found.text.replace(written, token), unit="", inline="", bare="")
