"""The bodies of OpenAI's chat API, as far as they are read."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lmmprune.compiler.serve.errors import ApiError

Number = Annotated[float, Field(allow_inf_nan=False)]


class _Strict(BaseModel):
    # A number is a number: "5" as text would be a mistake that goes unnoticed.
    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(_Strict):
    """A piece of text in a message."""

    type: Literal["text"]
    text: str


class ImageUrl(_Strict):
    """Where a picture is; ``detail`` is a hint about costs, and a bundle sees every picture at one size."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(_Strict):
    """A picture in a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(_Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: None = None
    refusal: None = None


class StreamOptions(_Strict):
    """What a stream says besides text; obfuscation pads pieces against listeners, which TLS is left to here."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ChatRequest(BaseModel):
    """What is read of a request; other fields are looked through by ``refuse_unsupported``."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: Number | None = None
    top_p: Number | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


# Fields of the API that change nothing where they hold one of these values, or (None) whatever they hold.
_HARMLESS: dict[str, tuple[Any, ...] | None] = {
    "user": None,
    "metadata": None,
    "safety_identifier": None,
    "prompt_cache_key": None,
    "prompt_cache_retention": None,
    "service_tier": ("auto", "default"),
    "store": (False,),
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
}


def read_request(body: bytes) -> ChatRequest:
    """Read a request.

    Raises:
        ApiError: It isn't JSON, a field isn't what the API says, or one isn't supported.
    """
    try:
        found = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        if first["type"] == "json_invalid":
            raise ApiError("the body isn't JSON: send one object, in UTF-8", code="invalid_json") from error
        said = first["msg"]
        raise ApiError(f"{where or 'the body'}: {said[:1].lower()}{said[1:]}", param=where or None) from error
    except RecursionError as error:
        raise ApiError("the body is nested too deeply", code="invalid_json") from error
    refuse_unsupported(found.model_extra or {})
    return found


def refuse_unsupported(extra: dict[str, Any]) -> None:
    """Refuse fields that would change the answer if they were heeded.

    Raises:
        ApiError: It names the first one.
    """
    for name, value in extra.items():
        if name not in _HARMLESS:
            raise ApiError(
                f"{name[:64]!r} isn't supported: leave it out", param=name[:64], code="unsupported_parameter"
            )
        allowed = _HARMLESS[name]
        if value is not None and allowed is not None and not any(_same(value, one) for one in allowed):
            shown = " or ".join(repr(one) for one in allowed)
            raise ApiError(
                f"{name!r} is supported as {shown} only: leave it out", param=name, code="unsupported_parameter"
            )


def _same(value: Any, known: Any) -> bool:
    """Compare as JSON does: true isn't 1."""
    return bool(value == known) and isinstance(value, bool) == isinstance(known, bool)
