"""Tables over a vocabulary: the bytes that each token stands for, and a pattern that finds added tokens.

Knows nothing about encoding, files or chats.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from ernie45.config.errors import CheckpointError
from ernie45.processor.added_tokens import AddedToken

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
SPACE_MARK = "\u2581"


def byte_level_alphabet() -> dict[str, int]:
    """GPT-2's 256 printable stand-ins for bytes: printable Latin-1 for itself, the rest counted on from U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + rank): byte for rank, byte in enumerate(others)}


def token_bytes(data: dict[str, Any], ids: dict[str, int]) -> tuple[list[bytes | None], bool]:
    """Bytes of every id of a `tokenizer.json`, and whether decoding drops the first space of a text.

    Working on bytes makes decoding of a stream exact: a UTF-8 decoder fed piece by piece gives what it gives for the whole.
    CheckpointError for a decoder that is neither byte-level nor SentencePiece's.
    """
    steps = list(_decoder_steps(data.get("decoder")))
    kinds = {step["type"] for step in steps}
    unknown = kinds - {"ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}
    if unknown:
        raise CheckpointError(
            f"tokenizer.json has the decoder {min(unknown)!r}; supported are ByteLevel and SentencePiece's steps "
            "(Replace, ByteFallback, Fuse, Strip, Metaspace); convert the tokenizer"
        )
    bytes_of: list[bytes | None] = [None] * (1 + max(ids.values(), default=-1))
    added = {token["content"] for token in data.get("added_tokens") or ()}
    alphabet = byte_level_alphabet() if "ByteLevel" in kinds else None
    for token, index in ids.items():
        if token in added:
            bytes_of[index] = token.encode()
        elif alphabet is not None:
            bytes_of[index] = bytes(alphabet[character] for character in token if character in alphabet)
        else:
            bytes_of[index] = _sentencepiece_bytes(token, byte_fallback="ByteFallback" in kinds)
    return bytes_of, _strips_first_space(steps)


def special_pattern(tokens: Iterable[AddedToken]) -> re.Pattern[str] | None:
    """A pattern with one group that matches the longest of the tokens, for `re.split`. None if there are no tokens.

    Built as a trie: ERNIE has over three thousand added tokens, nearly all beginning with `<|`, and a flat alternation
    would try each of them at every such place.
    """
    tokens = list(tokens)
    trie: dict[str, Any] = {}
    for token in tokens:
        node = trie
        for character in token.content:
            node = node.setdefault(character, {})
        node[""] = token
    wide = [
        (r"\s*" if token.lstrip else "") + re.escape(token.content) + (r"\s*" if token.rstrip else "")
        for token in sorted(tokens, key=lambda token: -len(token.content))
        if token.lstrip or token.rstrip
    ]
    return re.compile(f"({'|'.join([*wide, _trie_pattern(trie)])})") if trie else None


def _trie_pattern(node: dict[str, Any]) -> str:
    branches = [re.escape(key) + _trie_pattern(child) for key, child in sorted(node.items()) if key]
    if not branches:
        return ""
    pattern = branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"
    return f"(?:{pattern})?" if "" in node else pattern


def _sentencepiece_bytes(token: str, byte_fallback: bool) -> bytes:
    match = _BYTE_PIECE.fullmatch(token) if byte_fallback else None
    return bytes([int(match[1], 16)]) if match else token.replace(SPACE_MARK, " ").encode()


def _decoder_steps(decoder: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if decoder and decoder["type"] == "Sequence":
        for step in decoder["decoders"]:
            yield from _decoder_steps(step)
    elif decoder:
        yield decoder


def _strips_first_space(steps: list[dict[str, Any]]) -> bool:
    for step in steps:
        if step["type"] == "Strip" and step.get("start"):
            return True
        if step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never":
            return True
    return False
