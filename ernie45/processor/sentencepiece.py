"""A SentencePiece BPE `tokenizer.model` as the content of a `tokenizer.json`, without the sentencepiece library.

Knows nothing about ERNIE, chats or media.
"""

from typing import Any

from ernie45.processor.added_tokens import AddedToken


def tokenizer_json_from_sentencepiece(model: bytes, added: list[AddedToken], name: str = "tokenizer.model") -> dict[str, Any]:
    raise NotImplementedError
