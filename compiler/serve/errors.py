"""Errors as OpenAI's API writes them, so that its clients raise what they raise there."""

from __future__ import annotations

from typing import Any, Literal

from lmmprune.errors import InputError, LmmpruneError, one_line

_LONGEST_NAME = 100
Kind = Literal["invalid_request_error", "authentication_error", "rate_limit_error", "timeout_error", "server_error"]


class ApiError(LmmpruneError):
    """What a request is refused with.

    Attributes:
        status: Of HTTP.
        kind: As OpenAI's ``type``.
        code: A word for programs.
        param: The field that it is about.
        retry_after: Seconds after which the same request may succeed.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: Kind = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.code, self.param, self.retry_after = status, kind, code, param, retry_after

    def body(self) -> dict[str, Any]:
        """Return the body of the answer."""
        # Both may hold what the request said.
        param = None if self.param is None else one_line(self.param, most=_LONGEST_NAME)
        return {"error": {"message": one_line(str(self)), "type": self.kind, "param": param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Return the headers that belong to it."""
        found = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return {**found, "WWW-Authenticate": "Bearer"} if self.status == 401 else found


def as_api_error(error: Exception) -> ApiError:
    """Return what a client is told of an error; what isn't its own mistake tells nothing of this machine."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InputError):
        return ApiError(str(error))
    return ApiError("the server failed on this request; its log says more", status=500, kind="server_error")
