"""Turn a chat template into a bundle's prompt template: the text around one picture and one question."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lmmprune.compiler.assets.chat_template import ChatTemplate
from lmmprune.compiler.assets.further_turn import Content, further_turn, text_part
from lmmprune.compiler.assets.pictured_turn import NEXT, pictured_turn
from lmmprune.compiler.assets.several_pictures import bare_of_chat, unit_of_chat, unit_of_text
from lmmprune.compiler.runtime.check_text import check_text
from lmmprune.compiler.runtime.compose import ANSWER, STRIPS
from lmmprune.errors import InputError, ModelError
from lmmprune.models.family import Family
from lmmprune.models.private_names import render_chat

SLOT = "{prompt}"
OPTION = "--template"
BUILT_IN = "built-in"

# What templates do to a question's ends shows here.
_PROBES = (" both ends ", "<b>&'\"</b>\n", "Two\n\nlines")


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """What stands around a question.

    Attributes:
        text: With the picture, its placeholder once, and ``{prompt}`` once.
        origin: File that it comes from, ``--template``, or ``built-in``.
        strip: Ends of the question that lose their white space: "both", "left", "right", or "" for none.
        warnings: What the user should know.
        turn: What stands behind a question where the conversation goes on, as the manifest has it; "": it can't.
        answer_strip: Ends of an answer in a conversation that lose their white space.
        unit: What it writes for its picture, and once more for each further one; "": it does otherwise.
        inline: What stands for a picture inside a question.
        bare: The text around a question without a picture before it.
        pictured: As ``turn``, of a question that brings a picture; "": it does otherwise with several.
    """

    text: str
    origin: str
    strip: str = ""
    turn: str = ""
    answer_strip: str = ""
    unit: str = ""
    inline: str = ""
    bare: str = ""
    pictured: str = ""
    warnings: tuple[str, ...] = ()


def given_template(option: str) -> ChatTemplate | str:
    """Return what ``--template`` gives: a chat template in jinja, or a plain text with a picture and ``{prompt}``.

    Raises:
        InputError: It is neither a file nor a template.
    """
    text = check_text(option, OPTION).replace("\\n", "\n")
    file = Path(option)
    try:
        if file.is_file():
            text = file.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, ValueError) as error:
        if len(option) < 256 and "\n" not in option and SLOT not in option:
            raise InputError(f"{OPTION} '{option}' can't be read ({error})") from error
    if "{%" in text or "{{" in text:
        return ChatTemplate(text=text, origin=OPTION)
    if SLOT not in text:
        raise InputError(
            f"{OPTION} '{option}' is neither a file nor a template: expected a chat template in jinja, or a text with"
            f" '<image>' and '{SLOT}'"
        )
    return text


def plain_template(text: str, family: Family, token: str) -> PromptTemplate:
    """Return a template that was given as a plain text.

    Raises:
        InputError: It doesn't hold one picture and one question.
    """
    if token not in text:
        text = text.replace("<image>", _inline(family, token) or token)
    if text.count(SLOT) != 1 or text.count(token) != 1:
        raise InputError(
            f"{OPTION} gives {text!r}: expected '{SLOT}' once, for the question, and '{token}' once, for the picture"
        )
    return text_template(text, family, token, OPTION)


def text_template(
    text: str, family: Family, token: str, origin: str, *, warnings: tuple[str, ...] = ()
) -> PromptTemplate:
    """Return a template of a text that holds one placeholder and one question."""
    whole, picture = _with_picture(text, family, token), _with_picture(token, family, token)
    unit = unit_of_text(whole, picture)
    bare = whole.replace(unit, "")
    return PromptTemplate(text=whole, origin=origin, unit=unit, inline=picture, bare=bare, warnings=warnings)


def rendered_template(
    chat: ChatTemplate,
    special: Mapping[str, str],
    family: Family,
    token: str,
    *,
    part: Mapping[str, str] = MappingProxyType({"type": "image", "image": "picture"}),
) -> PromptTemplate:
    """Render a chat template as transformers' processor does, around one picture and one question.

    A template that takes texts only (it was written for a language model) gets the picture inside the text.

    Args:
        chat: The template.
        special: Name -> special token, which templates may write.
        family: The model's family.
        token: Text of the image placeholder.
        part: Of a message, for a picture: templates ask for the type, or whether there is an "image"; what it is they
            never see.

    Raises:
        ModelError: It can't be rendered, or doesn't place one picture and one question.
    """
    inline = _inline(family, token) or f"{token}\n"
    contents: tuple[tuple[Callable[[str, int], Any], Content], ...] = (
        (lambda question, pictures: [*[part] * pictures, *text_part(question)], text_part),
        (lambda question, pictures: inline * pictures + question, str),
        (lambda question, pictures: text_part(inline * pictures + question), text_part),
    )
    faults = []
    for first, further in contents:  # noqa: B007 - of the one that the loop ends with
        render = _renderer(chat, special, first)
        text, fault = _tried(render, token)
        if text is not None:
            break
        faults.append(fault)
    else:
        raise ModelError(
            f"the chat template in {chat.origin} {faults[0]}, expected one picture ('{token}') and one question: give"
            f" another one with {OPTION}"
        )
    warnings = []
    if faults:
        warnings.append(
            f"the chat template in {chat.origin} takes texts only, so the picture stands before the question as"
            f" {inline!r}; {OPTION} gives another form"
        )
    strip = next((name for name in STRIPS if _agrees(render, text, name)), None)
    if strip is None:
        warnings.append(
            f"the chat template in {chat.origin} changes what some questions say: the bundle asks them as they are,"
            " transformers' processor doesn't"
        )
    if "strftime_now" in chat.text:
        warnings.append(f"the chat template in {chat.origin} writes today's date: the bundle keeps that of its export")
    turn, answer_strip = "", ""
    if strip is not None:
        turn, answer_strip = further_turn(chat, special, (lambda question: first(question, 1), further), text, strip)

    def pictured(pictures: int) -> str:
        return render(SLOT, pictures)

    def going_on(pictures: int) -> str:
        contents = (first(SLOT, 1), further(ANSWER), first(NEXT, pictures))
        roles = ("user", "assistant", "user")
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        return render_chat(messages, chat.text, special)

    unit = unit_of_chat(pictured, token)
    return PromptTemplate(
        text=_with_picture(text, family, token),
        origin=chat.origin,
        strip=strip or "",
        turn=turn,
        answer_strip=answer_strip,
        unit=_with_picture(unit, family, token),
        # Within a text the line around a picture isn't the template's [ours].
        inline=_with_picture(unit.strip(), family, token),
        bare=bare_of_chat(pictured, text, unit, token, SLOT) if unit else "",
        pictured=_with_picture(pictured_turn(going_on, text, unit) if turn else "", family, token),
        warnings=tuple(warnings),
    )


_Render = Callable[..., str]
"""Gives the text of a question, and of so many pictures: one, if nothing is said."""


def _renderer(chat: ChatTemplate, special: Mapping[str, str], content: Callable[[str, int], Any]) -> _Render:
    def of_question(question: str, pictures: int = 1) -> str:
        return render_chat([{"role": "user", "content": content(question, pictures)}], chat.text, special)

    return of_question


def _tried(render: _Render, token: str) -> tuple[str | None, str]:
    """Return the rendered text if it has one picture and one question, else None and what it does instead."""
    try:
        text = render(SLOT)
    except ModelError as error:
        return None, f"can't be rendered ({error})"
    if text.count(SLOT) != 1 or text.count(token) != 1:
        shown = json.dumps(text if len(text) <= 200 else text[:200] + "...", ensure_ascii=False)
        return None, f"renders to {shown}"
    return text, ""


def _agrees(render: _Render, text: str, ends: str) -> bool:
    try:
        return all(render(probe) == text.replace(SLOT, STRIPS[ends](probe)) for probe in _PROBES)
    except ModelError:
        return False


def _inline(family: Family, token: str) -> str:
    return family.inline.replace(family.image_token, token)


def _with_picture(text: str, family: Family, token: str) -> str:
    """Write what the processor puts around a picture's tokens, unless the text brings it already."""
    picture = family.picture.replace(family.image_token, token)
    return text if not picture or picture in text else text.replace(token, picture)
