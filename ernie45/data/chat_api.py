"""Asks models behind OpenAI-compatible addresses: checks them, tries again, many questions at once.

Knows nothing about why they are asked. Pictures of conversations travel inside of the request.
"""

import base64
import io
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from ernie45.config.errors import ConfigError, DataError

_TRY_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 20.0
_MEDIA = ("image", "video")


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One answer, or why there is none. error: its kind (timeout, unreachable, refused, not_a_reply), "" if there is one."""

    text: str = ""
    reasoning: str = ""
    finished: bool = False
    num_tokens: int = 0
    error: str = ""
    detail: str = ""


class ChatApi:
    """One address. Safe for threads; `close` ends its connections."""

    def __init__(
        self, url: str, model: str = "", key_env: str = "OPENAI_API_KEY", timeout: float = 60.0, retries: int = 3
    ) -> None:
        """url: up to and with /v1. model: "" for the only one there. key_env: the environment variable with the key, if any.
        timeout: seconds a try. retries: further tries after an answer that says so, or none."""
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"url ({url!r}) must be an address such as http://localhost:8180/v1")
        if not timeout > 0 or retries < 0:
            raise ConfigError(f"timeout ({timeout}) must be above 0 and retries ({retries}) at least 0")
        self.url, self.model, self._retries = url.rstrip("/"), model, retries
        key = os.environ.get(key_env, "")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._client = httpx.Client(headers=headers, timeout=httpx.Timeout(timeout, pool=None), limits=limits)

    def check(self) -> "ChatApi":
        """See that something answers, and that it has the model. ConfigError with the address and what to do."""
        try:
            response = self._client.get(f"{self.url}/models", timeout=10.0)
        except httpx.HTTPError as error:
            raise ConfigError(f"url ({self.url}) does not answer: {_why(error)}; start the server, or correct it") from error
        if response.status_code in (401, 403):
            raise ConfigError(f"url ({self.url}) wants a key ({response.status_code}); put it into the environment")
        if response.status_code == 404 and self.model:
            return self  # not every server lists its models
        try:
            names = [str(one["id"]) for one in response.raise_for_status().json()["data"]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"url ({self.url}) has no OpenAI-compatible list of models at /models ({response.status_code}); give /v1 too"
            ) from error
        if not self.model and len(names) == 1:
            self.model = names[0]
        if self.model not in names:
            raise ConfigError(f"model ({self.model!r}) must be one of those at {self.url}: {', '.join(names) or 'none'}")
        return self

    def ask(self, messages: Sequence[Mapping[str, Any]], **fields: Any) -> Reply:
        """One answer; never raises for what the network or the server does. fields: of the request's body."""
        body = {"model": self.model, "messages": to_openai(messages), **fields}
        pause, reply = _FIRST_PAUSE, Reply(error="unreachable")
        for attempt in range(self._retries + 1):
            if attempt:
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            try:
                response = self._client.post(f"{self.url}/chat/completions", json=body)
            except httpx.TimeoutException as error:
                reply = Reply(error="timeout", detail=_why(error))
                continue
            except httpx.HTTPError as error:
                reply = Reply(error="unreachable", detail=_why(error))
                continue
            if response.status_code == 200:
                return _read(response)
            reply = Reply(error="refused", detail=f"{response.status_code}: {response.text[:300]}")
            if response.status_code not in _TRY_AGAIN:
                break
            pause = _asked_pause(response, pause)
        return reply

    def ask_all(self, asks: Sequence[Callable[[], Reply]], concurrency: int) -> list[Reply]:
        """So many at a time, in order."""
        with ThreadPoolExecutor(max(1, min(concurrency, len(asks)))) as threads:
            return list(threads.map(lambda ask: ask(), asks))

    def close(self) -> None:
        self._client.close()


def to_openai(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The conversation as JSON takes it: pictures that are PIL images, bytes or paths become data addresses.

    DataError for a picture of another kind, or a file that cannot be read.
    """
    result = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, Sequence) and not isinstance(content, str):
            content = [_part(part) for part in content]
        result.append({**message, "content": content})
    return result


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    kind = str(part.get("type", "")).removesuffix("_url")
    if kind not in _MEDIA:
        return dict(part)
    source = part.get(kind, part.get(f"{kind}_url"))
    if isinstance(source, Mapping):
        return {"type": f"{kind}_url", f"{kind}_url": dict(source)}
    return {"type": f"{kind}_url", f"{kind}_url": {"url": _address(kind, source)}}


def _address(kind: str, source: Any) -> str:
    if isinstance(source, str):
        return source
    if isinstance(source, Path):
        try:
            source = source.read_bytes()
        except OSError as error:
            raise DataError(f"{kind} ({source}) cannot be read: {error.strerror}") from error
    if isinstance(source, Image.Image):
        buffer = io.BytesIO()
        source.save(buffer, "PNG")
        source = buffer.getvalue()
    if not isinstance(source, bytes):
        raise DataError(f"{kind} of type {type(source).__name__} cannot be sent; give an address, a path, bytes or a PIL image")
    return f"data:{'image/png' if kind == 'image' else 'video/mp4'};base64,{base64.b64encode(source).decode()}"


def _read(response: httpx.Response) -> Reply:
    try:
        body = response.json()
        choice = body["choices"][0]
        message = choice["message"]
        text = message.get("content") or ""
        reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
        tokens = int((body.get("usage") or {}).get("completion_tokens") or 0)
        if not isinstance(text, str) or not isinstance(reasoning, str):
            raise TypeError("content is no text")
        return Reply(text=text, reasoning=reasoning, finished=choice.get("finish_reason") == "stop", num_tokens=tokens)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        return Reply(error="not_a_reply", detail=f"{type(error).__name__} {error} in {response.text[:200]}")


def _asked_pause(response: httpx.Response, pause: float) -> float:
    """What the server asks for (Retry-After in seconds), within bounds."""
    try:
        return min(max(float(response.headers["retry-after"]), 0.0), _LONGEST_PAUSE)
    except (KeyError, ValueError):
        return pause


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__
