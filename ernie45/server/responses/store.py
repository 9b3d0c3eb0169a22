"""Responses that clients asked to keep: in memory, the ones used least recently go first.

Knows nothing about how a response comes about.
"""

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

from ernie45.server.protocol import Message

NUM_RESPONSES = 1024
NUM_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A finished response. messages: the conversation with its answer, without instructions. owner: who may have it."""

    response: dict[str, Any]
    messages: Sequence[Message]
    num_bytes: int
    owner: str = ""


class ResponseStore:
    """Bounded by number and by bytes, pictures included. Safe to use from several threads.

    An id is a random name: whoever has it and is its owner may read, continue and delete the response.
    """

    def __init__(self, max_responses: int = NUM_RESPONSES, max_bytes: int = NUM_BYTES) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._stored: OrderedDict[str, Stored] = OrderedDict()
        self._num_bytes = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._stored)

    def put(self, response: dict[str, Any], messages: Sequence[Message], owner: str = "") -> None:
        """Keep a response under its id, and let go of others for it; one that alone has no room is not kept."""
        num_bytes = len(json.dumps(response)) + sum(len(message.model_dump_json()) for message in messages)
        with self._lock:
            self._remove(response["id"])
            if num_bytes > self._max_bytes:
                return
            while len(self._stored) >= self._max_responses or self._num_bytes + num_bytes > self._max_bytes:
                self._remove(next(iter(self._stored)))
            self._stored[response["id"]] = Stored(response=response, messages=messages, num_bytes=num_bytes, owner=owner)
            self._num_bytes += num_bytes

    def get(self, response_id: str, owner: str = "") -> Stored | None:
        """The response, which then was used last. None also for that of another owner, who is not told that there is one."""
        with self._lock:
            stored = self._stored.get(response_id)
            if stored is None or stored.owner != owner:
                return None
            self._stored.move_to_end(response_id)
            return stored

    def delete(self, response_id: str, owner: str = "") -> bool:
        """Whether there was one."""
        with self._lock:
            stored = self._stored.get(response_id)
            return stored is not None and stored.owner == owner and self._remove(response_id)

    def _remove(self, response_id: str) -> bool:
        stored = self._stored.pop(response_id, None)
        self._num_bytes -= stored.num_bytes if stored else 0
        return stored is not None
