"""ERNIEKit's files: text questions and answers, the same with pictures, and pairs of answers with scores.

Knows nothing about files or templates.
"""

from collections.abc import Mapping
from typing import Any

from ernie45.config.errors import DataError
from ernie45.data.formats.chat import checked, conversation, openai, tools_of
from ernie45.data.formats.files import Raw
from ernie45.data.formats.media import media_part
from ernie45.data.records import Document, Messages, Pair, Record

_ROLES = {"mask": "user", "no_mask": "assistant"}


def text(raw: Raw) -> Record:
    """{"src": [questions], "tgt": [answers], "label"?: [0 or 1], "system"?, "is_system"?: 1 if src[0] is the system's}

    An answer with label 0 carries no loss. Texts are stripped, as ERNIEKit does.
    """
    questions, answers = _texts(raw, "src"), _texts(raw, "tgt")
    labels = raw.data.get("label", [1] * len(questions))
    if not (isinstance(labels, list) and len(questions) == len(answers) == len(labels)):
        lengths = f"src ({len(questions)}), tgt ({len(answers)}) and label ({labels!r})"
        raise DataError(f"{raw.origin}: {lengths} must be equally long lists; correct them")
    system = _system(raw)
    if raw.data.get("is_system") == 1:
        system, questions, answers, labels = questions[0], questions[1:], answers[1:], labels[1:]
    messages = [{"role": "system", "content": system}] if system else []
    for question, answer in zip(questions, answers, strict=True):
        messages += [{"role": "user", "content": question.strip()}, {"role": "assistant", "content": answer.strip()}]
    given = {"label": labels} if "label" in raw.data else {}
    return openai(raw._replace(data={**raw.data, "messages": messages, **given}))


def document(raw: Raw) -> Document:
    """{"tgt": [texts]} without src, as its files for pretraining have it."""
    text = "\n".join(_texts(raw, "tgt"))
    return Document(parts=({"type": "text", "text": text},), origin=raw.origin)


def preference(raw: Raw) -> Pair:
    """{"src": [n questions], "tgt": [n - 1 answers], "response": [[...], [...]], "sort": [1, 0], "system"?, "is_system"?: 1}

    The response with the larger number in sort is the better one. A response of several texts goes on with the user's words.
    """
    questions, answers = _texts(raw, "src"), _texts(raw, "tgt", may_be_empty=True)
    if len(questions) != len(answers) + 1:
        raise DataError(
            f"{raw.origin}: src ({len(questions)}) must have one text more than tgt ({len(answers)}): the question both answer"
        )
    responses, sort = raw.data.get("response"), raw.data.get("sort")
    if not (isinstance(responses, list) and isinstance(sort, list) and len(responses) == len(sort) == 2):
        raise DataError(f"{raw.origin}: response and sort must have two entries each; correct them")
    if not all(isinstance(value, int | float) for value in sort) or sort[0] == sort[1]:
        raise DataError(f"{raw.origin}: sort ({sort!r}) must be two different numbers, the larger one for the better response")
    better, worse = (responses[sort.index(value)] for value in (max(sort), min(sort)))
    system = _system(raw)
    if raw.data.get("is_system") == 1 and len(questions) > 1:
        system, questions, answers = questions[0], questions[1:], answers[1:]
    prompt = [{"role": "system", "content": system}] if system else []
    for number, question in enumerate(questions):
        prompt.append({"role": "user", "content": question})
        prompt += [{"role": "assistant", "content": answers[number]}] if number < len(answers) else []
    return Pair(
        prompt=conversation(raw, prompt),
        chosen=_response(raw, better),
        rejected=_response(raw, worse),
        margin=float(max(sort) - min(sort)),
        tools=tools_of(raw),
        origin=raw.origin,
    )


def vision(raw: Raw) -> Record:
    """{"text_info": [{"text", "tag": "mask" (the user's) or "no_mask" (the answer)}], "image_info": [{"image_url",
    "matched_text_index"}], "video_info"?, "order"?, "system"?, "is_system"?: 1 if the first text is the system's}

    A picture stands before the text of its index, or where `order` puts it. Neighbours with one tag are one message.
    """
    system = _system(raw)
    turns: list[tuple[str, list[dict[str, Any]]]] = []
    parts = _ordered_parts(raw)
    if raw.data.get("is_system") == 1 and parts and parts[0][1]["type"] == "text":
        system = parts.pop(0)[1]["text"]
    for role, part in parts:
        if not turns or turns[-1][0] != role:
            turns.append((role, []))
        turns[-1][1].append(part)
    if not turns or turns[0][0] != "user" or turns[-1][0] != "assistant":
        raise DataError(f"{raw.origin}: text_info must begin with tag mask and end with tag no_mask; correct the tags")
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for role, content in turns:
        joined = "".join(part["text"] for part in content) if all(part["type"] == "text" for part in content) else content
        messages.append({"role": role, "content": joined})
    checked(messages, raw)
    return Record(messages=tuple(messages), tools=tools_of(raw), origin=raw.origin)


def _ordered_parts(raw: Raw) -> list[tuple[str, dict[str, Any]]]:
    """(role, part) in the order in which they stand."""
    items = {kind: _items(raw, f"{kind}_info") for kind in ("text", "image", "video")}
    places = _explicit_order(raw, items) if "order" in raw.data else _matched_order(raw, items)
    result: list[tuple[str, dict[str, Any]]] = []
    for kind, number in places:
        field = f"{kind}_info[{number}]"
        item = items[kind][number]
        if kind == "text":
            result.append(_text_part(raw, item, field))
        elif item.get("is_valid", True):
            if item.get("video_uid") or (kind == "image" and item.get("image_type") == "video"):
                raise DataError(f"{raw.origin}: {field} is a single frame of a video; name the video itself in video_info")
            result.append(("user", media_part(kind, item.get("image_url"), raw, f"{field}.image_url")))
    return result


def _matched_order(raw: Raw, items: Mapping[str, list[Any]]) -> list[tuple[str, int]]:
    if items["image"] and items["video"]:
        raise DataError(f"{raw.origin} has images and videos and needs `order`, which says where each stands; add it")
    places: list[tuple[str, int]] = []
    for index in range(len(items["text"])):
        for kind in ("image", "video"):
            places += [(kind, i) for i, item in enumerate(items[kind]) if max(item.get("matched_text_index", 0), 0) == index]
        places.append(("text", index))
    missing = sum(map(len, items.values())) - len(places)
    if missing:
        raise DataError(
            f"{raw.origin}: matched_text_index of {missing} pictures must be from 0 to {len(items['text']) - 1}; correct it"
        )
    return places


def _explicit_order(raw: Raw, items: Mapping[str, list[Any]]) -> list[tuple[str, int]]:
    order = raw.data["order"]
    kinds, indices = (order.get("type"), order.get("index")) if isinstance(order, Mapping) else (None, None)
    if not (isinstance(kinds, list) and isinstance(indices, list) and len(kinds) == len(indices)):
        raise DataError(f"{raw.origin}: order must have the lists type and index, equally long; correct it")
    places = list(zip(kinds, indices, strict=True))
    for kind, index in places:
        if kind not in items or not isinstance(index, int) or not 0 <= index < len(items[kind]):
            raise DataError(f"{raw.origin}: order names {kind} {index}, which there is not; correct it")
    return places


def _text_part(raw: Raw, item: Mapping[str, Any], field: str) -> tuple[str, dict[str, Any]]:
    tag, words = item.get("tag"), item.get("text")
    if tag not in _ROLES:
        raise DataError(f"{raw.origin}: {field}.tag ({tag!r}) must be mask or no_mask; correct it")
    if not isinstance(words, str):
        raise DataError(f"{raw.origin}: {field}.text must be a text, is {type(words).__name__}; correct it")
    for key in ("points", "tool_calls", "tool_response"):
        if item.get(key):
            raise DataError(f"{raw.origin}: {field}.{key} is not read; write it as OpenAI's messages, or as text")
    return _ROLES[tag], {"type": "text", "text": words.strip()}


def _items(raw: Raw, key: str) -> list[Any]:
    items = raw.data.get(key) or []
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        raise DataError(f"{raw.origin}: {key} must be a list of objects; correct it")
    return items


def _texts(raw: Raw, key: str, may_be_empty: bool = False) -> list[str]:
    value = raw.data.get(key)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not (texts or may_be_empty):
        raise DataError(f"{raw.origin}: {key} must be a text or a list of texts, and not empty; correct it")
    for number, words in enumerate(texts):
        if not isinstance(words, str) or not words.strip():
            raise DataError(f"{raw.origin}: {key}[{number}] must be a text, and not empty; correct it or remove the turn")
    return texts


def _system(raw: Raw) -> str:
    system = raw.data.get("system") or ""
    if not isinstance(system, str):
        raise DataError(f"{raw.origin}: system must be a text, is {type(system).__name__}; correct it")
    return system


def _response(raw: Raw, value: Any) -> Messages:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or len(texts) % 2 != 1 or not all(isinstance(item, str) and item.strip() for item in texts):
        raise DataError(f"{raw.origin}: a response must be 1, 3, ... texts (answer, user, answer, ...), none empty; correct it")
    return tuple({"role": ("assistant", "user")[number % 2], "content": words} for number, words in enumerate(texts))
