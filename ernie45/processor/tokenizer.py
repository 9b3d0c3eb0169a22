"""Text to token ids and back, from a model folder's `tokenizer.json` or SentencePiece `tokenizer.model`.

Knows nothing about chats, templates or media.
"""

import codecs
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from ernie45.config.errors import CheckpointError, RequestError
from ernie45.processor.added_tokens import AddedToken, added_tokens_of_folder
from ernie45.processor.sentencepiece import tokenizer_json_from_sentencepiece
from ernie45.processor.vocabulary import special_pattern, token_bytes

# Tags of the answer format. Some checkpoints flag them as special; they are text to everyone who reads an answer.
ANSWER_TAGS = frozenset(
    [
        "<think>",
        "</think>",
        "<response>",
        "</response>",
        "<tool_call>",
        "</tool_call>",
        "<tool_output>",
        "</tool_output>",
        "<tool_list>",
        "</tool_list>",
    ]
)


@dataclass(frozen=True)
class _Decoding:
    """What decoding needs of a tokenizer.json: bytes of each id, and whether the first space is an artefact."""

    bytes_of: list[bytes | None]
    strip_first_space: bool


class Tokenizer:
    """Encodes plain text and control tokens on separate paths, so that text can never turn into a control token.

    The `tokenizers` library matches added tokens wherever they occur in its input. So `_plain` is a copy without control
    tokens, and these are found by `split_special`, which callers use only on text they made themselves.
    """

    def __init__(self, data: dict[str, Any]) -> None:
        """data: the content of a `tokenizer.json`."""
        self.data = data
        self._ids = _vocabulary(data)
        added = [AddedToken.from_json(token) for token in data.get("added_tokens") or ()]
        control = [token for token in added if token.is_control]
        self.control_ids = {token.content: token.id for token in control}
        self._plain = tokenizers.Tokenizer.from_str(json.dumps(_without_control_tokens(data, self.control_ids)))
        self._decoding = _Decoding(*token_bytes(data, self._ids))
        self._special_re = special_pattern(control)
        self._hidden = {token.id for token in added if token.special and token.content not in ANSWER_TAGS}

    @classmethod
    def from_dir(cls, folder: str | Path) -> "Tokenizer":
        """`tokenizer.json`, else `tokenizer.model` with the folder's added tokens. CheckpointError if there is neither."""
        folder = Path(folder)
        fast, slow = folder / "tokenizer.json", folder / "tokenizer.model"
        if fast.is_file():
            try:
                return cls(json.loads(fast.read_text(encoding="utf-8")))
            except CheckpointError:
                raise
            except Exception as error:  # the tokenizers library raises bare Exception for a malformed file
                raise CheckpointError(f"tokenizer.json ({fast}) cannot be read: {error}; fetch the file again") from error
        if slow.is_file():
            return cls(tokenizer_json_from_sentencepiece(slow.read_bytes(), added_tokens_of_folder(folder), name=str(slow)))
        raise CheckpointError(f"model folder ({folder}) has neither tokenizer.json nor tokenizer.model; add one of them")

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` into the folder."""
        text = json.dumps(self.data, ensure_ascii=False, indent=1)
        (Path(folder) / "tokenizer.json").write_text(text, encoding="utf-8")

    def __len__(self) -> int:
        """One more than the largest id: rows an embedding needs."""
        return len(self._decoding.bytes_of)

    def __contains__(self, token: object) -> bool:
        return token in self._ids

    def id_of(self, token: str) -> int | None:
        """The id of a token, added or ordinary; None if there is no such token."""
        return self._ids.get(token)

    def bytes_of(self, token_id: int) -> bytes:
        """What a token stands for in a text, perhaps part of a character; empty for an unknown id."""
        return (self._decoding.bytes_of[token_id] or b"") if 0 <= token_id < len(self) else b""

    @property
    def first_special_characters(self) -> frozenset[str]:
        """The characters a control token can begin with."""
        return frozenset(content[0] for content in self.control_ids)

    def split_special(self, text: str) -> list[str]:
        """Cut at control tokens: even items are plain text (perhaps empty), odd items are control tokens."""
        pieces = self._special_re.split(text) if self._special_re else [text]
        # a token that swallows white space was matched with it
        return [piece if index % 2 == 0 or piece in self.control_ids else piece.strip() for index, piece in enumerate(pieces)]

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Ids of the text; nothing is put before or after it.

        allow_special: whether control tokens written out in the text become themselves. Leave it off for text of users.
        RequestError for text that is no Unicode (a lone surrogate).
        """
        if not allow_special:
            try:
                return self._plain.encode(text, add_special_tokens=False).ids if text else []
            except TypeError as error:  # what the library raises for a lone surrogate
                raise RequestError("text has a character that is no Unicode (a lone surrogate); remove it") from error
        ids: list[int] = []
        for index, piece in enumerate(self.split_special(text)):
            ids += [self.control_ids[piece]] if index % 2 else self.encode(piece)
        return ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of the ids. Bytes that are no UTF-8 become U+FFFD; unknown ids give nothing.

        skip_special_tokens: leave out control tokens; the tags of the answer format (<think>, ...) always stay.
        """
        decoder = IncrementalDecoder(self, skip_special_tokens=skip_special_tokens)
        return decoder.push(ids) + decoder.flush()


class IncrementalDecoder:
    """Decodes an answer as it comes; the pieces joined are what `Tokenizer.decode` gives for all ids at once."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._bytes_of = tokenizer._decoding.bytes_of
        self._hidden = tokenizer._hidden if skip_special_tokens else frozenset()
        self._strip = tokenizer._decoding.strip_first_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Iterable[int]) -> str:
        """The whole characters that these ids complete; bytes of an unfinished one wait for the next call."""
        pieces = [self._piece(token_id) for token_id in ids if token_id not in self._hidden]
        data = b"".join(pieces)
        if self._strip and data:
            self._strip, data = False, data.removeprefix(b" ")
        return self._utf8.decode(data)

    def flush(self) -> str:
        """What is left at the end: U+FFFD if the answer stopped inside a character, else nothing."""
        return self._utf8.decode(b"", final=True)

    def _piece(self, token_id: int) -> bytes:
        return (self._bytes_of[token_id] or b"") if 0 <= token_id < len(self._bytes_of) else b""


def _vocabulary(data: dict[str, Any]) -> dict[str, int]:
    if data["model"].get("type", "BPE") != "BPE":
        raise CheckpointError(
            f"tokenizer.json has a model of type {data['model']['type']!r}, must be BPE; convert the tokenizer"
        )
    vocabulary = dict(data["model"]["vocab"])
    vocabulary.update((token["content"], token["id"]) for token in data.get("added_tokens") or ())
    return vocabulary


def _without_control_tokens(data: dict[str, Any], control_ids: dict[str, int]) -> dict[str, Any]:
    """The same tokenizer, blind to control tokens and without anything put around the text."""
    model = data["model"]
    text_tokens = [token for token in data.get("added_tokens") or () if token["content"] not in control_ids]
    vocabulary = model["vocab"]
    if model.get("ignore_merges"):  # then a whole word found in the vocabulary is taken, a control token's name included
        vocabulary = {token: index for token, index in vocabulary.items() if token not in control_ids}
    # the library numbers added tokens itself unless it finds them in the vocabulary
    model = {**model, "vocab": vocabulary | {token["content"]: token["id"] for token in text_tokens}}
    return {**data, "model": model, "added_tokens": text_tokens, "post_processor": None, "truncation": None, "padding": None}
