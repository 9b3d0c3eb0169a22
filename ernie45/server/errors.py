"""Errors as OpenAI's clients expect them: a status and {"error": {"message", "type", "param", "code"}}.

Knows nothing about which route raises them.
"""

import re
from collections.abc import Callable
from typing import Any

from ernie45.config.errors import (
    Ernie45Error,
    MediaAccessError,
    MediaError,
    MediaFormatError,
    MediaSizeError,
    MediaTimeoutError,
    MediaUnknownError,
)

# A host that is too slow is a 400 as well: clients repeat a 5xx by themselves, and it would only be waited for again.
_MEDIA_CODES: dict[type[Ernie45Error], str] = {
    MediaFormatError: "unsupported_media_type",
    MediaSizeError: "media_too_large",
    MediaAccessError: "media_not_allowed",
    MediaTimeoutError: "media_timeout",
    MediaUnknownError: "media_not_remembered",
    MediaError: "invalid_media",
}
INVALID_REQUEST = "invalid_request_error"


class ApiError(Exception):
    """Ends a request with a status and one line for the user. param: the field it is about."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    def renamed(self, rename: Callable[[str], str]) -> "ApiError":
        """The same with other names of fields. rename: of a text, which may be the message or a field."""
        param = None if self.param is None else rename(self.param)
        return ApiError(self.status, rename(self.message), param=param, code=self.code, retry_after_s=self.retry_after_s)

    @property
    def type(self) -> str:
        if self.status == 429:
            return "rate_limit_error"
        return INVALID_REQUEST if self.status < 500 else "server_error"

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}


def from_user_error(error: Ernie45Error) -> ApiError:
    """A 400, or 415 for a file of a kind that is not read, with the error's own line and the field that it begins with."""
    message = str(error)
    field = re.match(r"messages[\w.\[\]]*|[a-z]\w*(?:\[\d+\]|\.\w+)*(?= \(| is | has )", message)
    code = next((code for kind, code in _MEDIA_CODES.items() if isinstance(error, kind)), "invalid_value")
    status = 415 if isinstance(error, MediaFormatError) else 400
    return ApiError(status, message, param=field[0] if field else None, code=code)
