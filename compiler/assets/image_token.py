"""Find the placeholder that marks a picture's place in a prompt: its text and its id."""

from __future__ import annotations

from pathlib import Path

from lmmprune.compiler.assets.checkpoint_tokenizer import CheckpointTokenizer
from lmmprune.errors import ModelError
from lmmprune.models.read_json import read_json_if_there
from lmmprune.models.registry import FAMILIES
from lmmprune.models.source import Source

# Names that tokenizers give it; InternVL's keeps "image_token" for something else.
_NAMES = ("context_image_token", "image_token")
_KEYS = ("image_token_id", "image_token_index")
# The same of a video's.
_VIDEO_NAMES = ("video_token",)
_VIDEO_KEYS = ("video_token_id", "video_token_index")


def find_image_token(source: Source, origin: Path, tokens: CheckpointTokenizer) -> tuple[str, int]:
    """Return text and id of the placeholder: of a picture's tokens, or of a video's where those have their own.

    The text is what the tokenizer names so, else what the processor does, else the family's own; the model looks for
    the id that ``config.json`` states, so both have to be the same token.

    Raises:
        ModelError: The vocabulary lacks it, or ``config.json`` states another one.
    """
    if source.directory is None:
        text = FAMILIES["llava"].image_token  # of the tokenizer that is borrowed
        return text, tokens.tokenizer.token_to_id(text) or 0
    names: tuple[str, ...] = _NAMES
    keys, own = _KEYS, source.family.image_token
    if source.frames is not None and source.family.video is not None and not source.family.video.as_pictures:
        names, keys, own = _VIDEO_NAMES, _VIDEO_KEYS, source.family.video.token
    stated = read_json_if_there(origin / "config.json")
    wanted = next((int(stated[key]) for key in keys if stated.get(key) is not None), None)
    texts = [tokens.special[name] for name in names if name in tokens.special]
    if isinstance(named := read_json_if_there(origin / "processor_config.json").get(names[-1]), str):
        texts.append(named)
    texts.append(own)
    ids = {text: tokens.tokenizer.token_to_id(text) for text in texts}
    known = {text: int(index) for text, index in ids.items() if index is not None}
    if wanted is None:
        if not known:
            raise ModelError(
                f"the tokenizer in '{origin}' has no token '{texts[0]}', which marks the picture's place, and"
                f" config.json has no {keys[0]}: add the token, or state its id"
            )
        return next(iter(known.items()))
    for text, index in known.items():
        if index == wanted:
            return text, index
    at = tokens.tokenizer.id_to_token(wanted)
    if not known and at is not None:
        return at, wanted
    found = f"'{texts[0]}' isn't in the vocabulary" if not known else f"'{next(iter(known))}' is {min(known.values())}"
    raise ModelError(
        f"config.json of '{origin}' says that token {wanted} marks the picture's place, in the tokenizer that is"
        f" {'nothing' if at is None else repr(at)} and {found}: they must be of one model"
    )
