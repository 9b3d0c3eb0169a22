"""How log lines look, as text or as JSON, and which loggers write.

Knows nothing about what is logged. Of an exception it writes where it came from and its type, not its message: that may
quote a prompt, a key or a picture's address, and it is written only where `details` asks for it.
"""

import json
import logging
import time
import traceback
from types import TracebackType
from typing import Any

_Caught = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class TextFormatter(logging.Formatter):
    """One line, and below it the frames of an exception."""

    def __init__(self, details: bool = False) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")
        self.details = details

    def format(self, record: logging.LogRecord) -> str:
        record.exc_text = None  # another formatter may have left its own
        text = super().format(record)
        record.exc_text = None
        return text

    def formatException(self, ei: _Caught) -> str:
        if self.details:
            return super().formatException(ei)
        return "\n".join(_frames(ei[1]))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, the fields of the access log, and an exception's frames."""

    def __init__(self, details: bool = False) -> None:
        super().__init__()
        self.details = details

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        line: dict[str, Any] = {"time": moment, "level": record.levelname, "logger": record.name}
        fields = getattr(record, "fields", None)
        line |= fields if fields is not None else {"message": record.getMessage()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)

    def formatException(self, ei: _Caught) -> str:
        return super().formatException(ei) if self.details else "\n".join(_frames(ei[1]))


def _frames(error: BaseException | None) -> list[str]:
    """Where an exception and those behind it came from, without what they say."""
    lines = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        lines.append(f"{type(error).__module__}.{type(error).__qualname__} (its message is not logged)")
        lines += [f"  {frame.filename}:{frame.lineno} in {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
        error = error.__cause__ or error.__context__
    return lines


def log_config(quiet: bool, as_json: bool = False, details: bool = False) -> dict[str, Any]:
    """For `logging.config.dictConfig`: everything to stderr; warnings always, each request unless quiet."""
    level = "WARNING" if quiet else "INFO"
    formatter = {"()": JsonFormatter if as_json else TextFormatter, "details": details}
    silent = {"handlers": [], "level": "CRITICAL", "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": formatter},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"}},
        "loggers": {
            "uvicorn.error": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
            "uvicorn.access": silent,  # it writes paths with their queries; `access_log` writes instead
            "ernie45": {"handlers": ["stderr"], "level": level, "propagate": False},
        },
    }
