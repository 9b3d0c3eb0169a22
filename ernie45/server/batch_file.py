"""The files of a batch in OpenAI's form: requests in, one line each; answers out, one line each, also after a crash.

Knows nothing about what answers a request.
"""

import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from ernie45.config.errors import RequestError, StorageError

_FIELDS = ("custom_id", "method", "url", "body")


@dataclass(frozen=True, kw_only=True)
class BatchLine:
    """One request. number: of its line in the file, from 1. error: why it is none, if it is none."""

    number: int
    custom_id: str | None = None
    url: str = ""
    body: bytes = b""
    error: str | None = None


def read_lines(path: Path, max_bytes: int) -> Iterator[BatchLine]:
    """The requests of a file, one at a time; empty lines are left out. A line that is no request comes with its error.

    RequestError if the file cannot be read. max_bytes: of a line; the rest of a longer one is skipped, not kept.
    """
    seen: set[str] = set()
    try:
        with path.open("rb") as file:
            for number, (line, whole) in enumerate(_split(file, max_bytes), 1):
                if line.strip():
                    yield (
                        _parse(line, number, seen)
                        if whole
                        else BatchLine(
                            number=number, error=f"line {number} is longer than {max_bytes} bytes; send smaller pictures"
                        )
                    )
    except OSError as error:
        raise RequestError(f"input ({path}) cannot be read: {error.strerror}; name a file with a request a line") from error


def _split(file: Any, max_bytes: int) -> Iterator[tuple[bytes, bool]]:
    """Lines, and whether they are whole."""
    while line := file.readline(max_bytes + 1):
        whole = line.endswith(b"\n") or len(line) <= max_bytes
        rest = line
        while not whole and rest and not rest.endswith(b"\n"):
            rest = file.readline(max_bytes + 1)
        yield line, whole


def _parse(line: bytes, number: int, seen: set[str]) -> BatchLine:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        return BatchLine(number=number, error=f"line {number} is not JSON: {error}; write one object a line")
    if not isinstance(data, dict):
        return BatchLine(number=number, error=f"line {number} must be an object with {', '.join(_FIELDS)}")
    custom_id = data.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        return BatchLine(number=number, error=f"custom_id of line {number} must be a text that is not empty; add it")
    if custom_id in seen:
        rule = f"custom_id ({custom_id[:80]!r}) of line {number} was used before; each must be of its own"
        return BatchLine(number=number, error=rule)
    seen.add(custom_id)
    return BatchLine(
        number=number,
        custom_id=custom_id,
        url=str(data.get("url")),
        body=json.dumps(data.get("body")).encode(),
        error=_fault(data, number),
    )


def _fault(data: dict[str, Any], number: int) -> str | None:
    unknown = sorted(set(data) - set(_FIELDS))
    if unknown:
        return f"{unknown[0]} of line {number} is not one of {', '.join(_FIELDS)}; leave it out"
    if data.get("method") != "POST":
        return f"method ({data.get('method')!r}) of line {number} must be 'POST'; change it"
    if not isinstance(data.get("url"), str):
        return f"url ({data.get('url')!r}) of line {number} must be a text such as /v1/chat/completions; change it"
    if not isinstance(data.get("body"), dict):
        return f"body of line {number} must be an object, the body of the request; add it"
    if data["body"].get("stream"):
        return f"body.stream (True) of line {number} is not for batches; leave it out"
    if data["body"].get("store"):
        return f"body.store (True) of line {number} is not for batches, which keep nothing; leave it out"
    return None


class BatchOutput:
    """The answers so far, and the end of the file they are added to. One process at a time has it.

    done: custom_ids whose answer is in the file. lines: numbers of lines of the input without an id that have theirs.
    """

    def __init__(self, path: Path) -> None:
        """Opens or makes the file, takes back half a last line, and reads what is done. StorageError if it cannot."""
        self.path = path
        self.done: set[str] = set()
        self.lines: set[int] = set()
        self.num_errors = 0
        try:
            self._file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise StorageError(
                f"output ({path}) is being written by another run; wait for it, or choose another file"
            ) from error
        except OSError as error:
            raise StorageError(f"output ({path}) cannot be written: {error.strerror}; choose another file") from error
        try:
            self._recover()
        except BaseException:
            self._file.close()
            raise

    def _recover(self) -> None:
        end = 0
        with os.fdopen(os.dup(self._file.fileno()), "rb") as file:
            file.seek(0)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # the run before was killed in the middle of it
                end += len(line)
                if line.strip():
                    self._note(line)
        self._file.truncate(end)
        self._file.seek(end)

    def _note(self, line: bytes) -> None:
        try:
            data = json.loads(line)
            custom_id, error = data["custom_id"], data["error"]
            status = data["response"]["status_code"] if data["response"] is not None else 400
            number = (error or {}).get("line")
        except (ValueError, KeyError, TypeError) as fault:
            rule = "has a line that is no answer of a batch; choose another file, it would be added to"
            raise StorageError(f"output ({self.path}) {rule}") from fault
        self.num_errors += status != 200
        if number is not None:
            self.lines.add(number)
        else:
            self.done.add(custom_id)

    def is_done(self, line: BatchLine) -> bool:
        """Whether the answer to a line is in the file. Lines without a usable id are known by their number."""
        return line.number in self.lines or (line.error is None and line.custom_id in self.done)

    def write(self, line: BatchLine, status: int, body: dict[str, Any]) -> None:
        """Add the answer to a line: the status and body that the server would have sent. StorageError if it cannot."""
        response = {"status_code": status, "request_id": f"req_{uuid.uuid4().hex}", "body": body}
        self._write(line, response, None, failed=status != 200)

    def write_error(self, line: BatchLine, message: str) -> None:
        """Add that a line is no request."""
        self._write(line, None, {"code": "invalid_line", "message": message, "line": line.number}, failed=True)

    def _write(self, line: BatchLine, response: Any, error: Any, *, failed: bool) -> None:
        answer = {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": line.custom_id, "response": response, "error": error}
        data = memoryview(json.dumps(answer, ensure_ascii=False).encode() + b"\n")
        try:
            while data:  # a full disk may take a part
                data = data[self._file.write(data) :]
        except OSError as fault:
            raise StorageError(f"output ({self.path}) cannot be written: {fault.strerror}; make room and run again") from fault
        self.num_errors += failed

    def close(self) -> None:
        """Give the file back."""
        self._file.close()
