"""The items of a response as they grow, and the event for each step.

Knows nothing about tokens, requests or how events are sent.
"""

import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from ernie45.processor.reasoning import Delta, Part
from ernie45.server.protocol import AssistantMessage
from ernie45.server.protocol.tools import FunctionCall, ToolCall

Event = dict[str, Any]


class Output:
    """Takes the pieces of an answer. items: so far; the last one may still grow."""

    def __init__(self, summarize: bool = False) -> None:
        """summarize: thoughts are sent as summaries."""
        self.items: list[dict[str, Any]] = []
        self._summarize = summarize
        self._open: Part | None = None  # what the last item is, while it grows

    def add(self, deltas: Iterable[Delta]) -> Iterator[Event]:
        """The events of some pieces."""
        for part, text in deltas:
            if part == "call":
                yield from self.close("completed")
                yield from self._begin("arguments", text)
            else:
                if self._open != part:
                    yield from self.close("completed")
                    yield from self._begin(part, "")
                yield self._grow(text)

    def close(self, status: str) -> Iterator[Event]:
        """The events that end the item that grows, if there is one."""
        if self._open is None:
            return
        item, place = self.items[-1], self._place()
        if self._open == "arguments":
            done = {"arguments": item["arguments"], "name": item["name"]}
            yield {"type": "response.function_call_arguments.done"} | place | done
        elif self._open == "reasoning" and self._summarize:
            [part] = item["summary"]
            yield {"type": "response.reasoning_summary_text.done"} | place | {"summary_index": 0, "text": part["text"]}
            yield {"type": "response.reasoning_summary_part.done"} | place | {"summary_index": 0, "part": dict(part)}
        else:
            [part] = item["content"]
            kind, more = self._text_event()
            yield {"type": f"response.{kind}.done"} | place | {"content_index": 0, "text": part["text"]} | more
            yield {"type": "response.content_part.done"} | place | {"content_index": 0, "part": dict(part)}
        item["status"] = status
        self._open = None
        yield {"type": "response.output_item.done", "output_index": len(self.items) - 1, "item": copy_item(item)}

    def message(self) -> AssistantMessage:
        """The items as one message of a chat."""
        texts = {"reasoning": "", "message": ""}
        calls = []
        for item in self.items:
            if item["type"] == "function_call":
                function = FunctionCall(name=item["name"], arguments=item["arguments"])
                calls.append(ToolCall(type="function", id=item["call_id"], function=function, index=None))
            else:
                parts = (item.get("content") or []) + item.get("summary", [])
                texts[item["type"]] += "".join(part["text"] for part in parts)
        fields = {"content": texts["message"], "reasoning_content": texts["reasoning"] or None, "tool_calls": calls or None}
        return AssistantMessage.model_validate({"role": "assistant"} | fields)

    def _begin(self, part: Part, name: str) -> Iterator[Event]:
        self._open = part
        self.items.append(_new_item(part, name, self._summarize))
        item = self.items[-1]
        yield {"type": "response.output_item.added", "output_index": len(self.items) - 1, "item": copy_item(item)}
        if part == "arguments":
            return
        if part == "reasoning" and self._summarize:
            item["summary"].append({"type": "summary_text", "text": ""})
            index, kind, new = "summary_index", "reasoning_summary_part", item["summary"][0]
        else:
            item["content"].append(_new_part(part))
            index, kind, new = "content_index", "content_part", item["content"][0]
        yield {"type": f"response.{kind}.added"} | self._place() | {index: 0, "part": dict(new)}

    def _grow(self, text: str) -> Event:
        item, place = self.items[-1], self._place()
        if self._open == "arguments":
            item["arguments"] += text
            return {"type": "response.function_call_arguments.delta"} | place | {"delta": text}
        if self._open == "reasoning" and self._summarize:
            item["summary"][0]["text"] += text
            return {"type": "response.reasoning_summary_text.delta"} | place | {"summary_index": 0, "delta": text}
        item["content"][0]["text"] += text
        kind, more = self._text_event()
        return {"type": f"response.{kind}.delta"} | place | {"content_index": 0, "delta": text} | more

    def _text_event(self) -> tuple[str, dict[str, Any]]:
        return ("reasoning_text", {}) if self._open == "reasoning" else ("output_text", {"logprobs": []})

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}


def copy_item(item: dict[str, Any]) -> dict[str, Any]:
    """An item as it is now."""
    parts = {name: [dict(part) for part in item[name]] for name in ("content", "summary") if name in item}
    return item | parts


def _new_item(part: Part, name: str, summarize: bool) -> dict[str, Any]:
    random = uuid.uuid4().hex
    if part == "arguments":
        call = {"type": "function_call", "id": f"fc_{random}", "call_id": f"call_{random}", "name": name, "arguments": ""}
        return call | {"status": "in_progress"}
    if part == "reasoning":
        content = {} if summarize else {"content": []}
        return {"type": "reasoning", "id": f"rs_{random}", "summary": [], "status": "in_progress"} | content
    return {"type": "message", "id": f"msg_{random}", "role": "assistant", "content": [], "status": "in_progress"}


def _new_part(part: Part) -> dict[str, Any]:
    if part == "reasoning":
        return {"type": "reasoning_text", "text": ""}
    return {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
