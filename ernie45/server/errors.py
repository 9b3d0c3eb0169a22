"""Errors as OpenAI's clients expect them: a status and {"error": {"message", "type", "param", "code"}}.

Knows nothing about which route raises them.
"""

import re
from typing import Any

from ernie45.config.errors import Ernie45Error, MediaError

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
    """A 400 with the error's own line; its param is the field that the line begins with."""
    message = str(error)
    field = re.match(r"messages[\w.\[\]]*|[a-z]\w*(?:\[\d+\]|\.\w+)*(?= \(| is )", message)
    code = "invalid_media" if isinstance(error, MediaError) else "invalid_value"
    return ApiError(400, message, param=field[0] if field else None, code=code)
