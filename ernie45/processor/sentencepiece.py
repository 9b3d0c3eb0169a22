"""A SentencePiece BPE `tokenizer.model` as the content of a `tokenizer.json`, without the sentencepiece library.

Knows nothing about ERNIE, chats or media.
"""

import base64
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from ernie45.config.errors import CheckpointError
from ernie45.processor.added_tokens import AddedToken
from ernie45.processor.vocabulary import SPACE_MARK

# SentencePiece.Type of sentencepiece_model.proto
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_BPE = 2


class Piece(NamedTuple):
    """One entry of the vocabulary; its id is its place. Higher scores merge first."""

    text: str
    score: float
    type: int


@dataclass(frozen=True, kw_only=True)
class SentencePieceModel:
    """What encoding needs of a `tokenizer.model`."""

    pieces: list[Piece]
    model_type: int
    byte_fallback: bool
    whitespace_as_suffix: bool
    character_map: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool


def read_sentencepiece(data: bytes, name: str = "tokenizer.model") -> SentencePieceModel:
    """Parse the protobuf message. CheckpointError if the bytes are none."""
    try:
        model = _fields(data)
        trainer = _fields(_last(model, 2, b""))
        normalizer = _fields(_last(model, 3, b""))
        pieces = [_piece(_fields(entry)) for entry in model.get(1, ())]
    except (IndexError, struct.error, UnicodeDecodeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"tokenizer.model ({name}) is not a SentencePiece model: {error}; fetch the file again"
        ) from error
    if not pieces:
        raise CheckpointError(f"tokenizer.model ({name}) is not a SentencePiece model: it has no pieces; fetch the file again")
    return SentencePieceModel(
        pieces=pieces,
        model_type=_last(trainer, 3, 1),
        byte_fallback=bool(_last(trainer, 35, 0)),
        whitespace_as_suffix=bool(_last(trainer, 24, 0)),
        character_map=_last(normalizer, 2, b""),
        add_dummy_prefix=bool(_last(normalizer, 3, 1)),
        remove_extra_whitespaces=bool(_last(normalizer, 4, 1)),
        escape_whitespaces=bool(_last(normalizer, 5, 1)),
    )


def tokenizer_json_from_sentencepiece(data: bytes, added: list[AddedToken], name: str = "tokenizer.model") -> dict[str, Any]:
    """The same tokenizer in the form that the `tokenizers` library reads.

    added: tokens of the model folder beyond the vocabulary; one that is in the vocabulary must have its id there.
    Control and user-defined pieces become added tokens as well: the former never come from text, the latter are cut out of
    the normalised text before merging, as SentencePiece does. CheckpointError for what has no equal there: a model that is
    not BPE, pieces marked unused, whitespace as suffix.
    """
    model = read_sentencepiece(data, name)
    if model.model_type != _BPE:
        raise CheckpointError(
            f"tokenizer.model ({name}) has model type {model.model_type}, must be BPE (2); use tokenizer.json"
        )
    if model.whitespace_as_suffix or any(piece.type == _UNUSED for piece in model.pieces):
        raise CheckpointError(
            f"tokenizer.model ({name}) has whitespace as suffix or unused pieces, which are not supported; use tokenizer.json"
        )
    vocabulary = {piece.text: index for index, piece in enumerate(model.pieces)}
    unknown = next((piece.text for piece in model.pieces if piece.type == _UNKNOWN), None)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(model, vocabulary, added, name),
        "normalizer": _normalizer(model),
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": _decoder(model),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": model.byte_fallback,
            "vocab": vocabulary,
            "merges": _merges(model.pieces),
        },
    }


def _merges(pieces: list[Piece]) -> list[list[str]]:
    """Every way to put a piece together from two others, best piece first.

    SentencePiece joins the neighbours whose joined text scores highest; the tokenizers library wants ranked pairs.
    """
    normal = {piece.text: index for index, piece in enumerate(pieces) if piece.type == _NORMAL}
    ranked: list[tuple[float, int, int, str, str]] = []
    for text, index in normal.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in normal and right in normal:
                ranked.append((-pieces[index].score, index, cut, left, right))
    return [[left, right] for *_, left, right in sorted(ranked)]


def _added_tokens(
    model: SentencePieceModel, vocabulary: dict[str, int], added: list[AddedToken], name: str
) -> list[dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = {}
    for index, piece in enumerate(model.pieces):
        if piece.type in (_UNKNOWN, _CONTROL):
            entries[piece.text] = AddedToken(index, piece.text).to_json()
        elif piece.type == _USER_DEFINED:
            entries[piece.text] = AddedToken(index, piece.text, special=False).to_json() | {"normalized": True}
    for token in added:
        if vocabulary.get(token.content, token.id) != token.id:
            raise CheckpointError(
                f"added token {token.content!r} has id {token.id}, but {vocabulary[token.content]} in {name}; "
                "the files belong to different tokenizers"
            )
        entries[token.content] = token.to_json()
    return sorted(entries.values(), key=lambda entry: entry["id"])


def _normalizer(model: SentencePieceModel) -> dict[str, Any] | None:
    steps: list[dict[str, Any]] = []
    if model.character_map:  # the library maps a cluster with combining marks as one, so a few such clusters differ
        encoded = base64.b64encode(model.character_map).decode("ascii")
        steps.append({"type": "Precompiled", "precompiled_charsmap": encoded})
    if model.remove_extra_whitespaces:
        steps.append({"type": "Replace", "pattern": {"Regex": r"\A +| +\z"}, "content": ""})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if model.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": " "})
    if model.escape_whitespaces:
        steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK})
    return {"type": "Sequence", "normalizers": steps} if steps else None


def _decoder(model: SentencePieceModel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if model.add_dummy_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _piece(fields: dict[int, list[Any]]) -> Piece:
    text = _last(fields, 1, b"").decode("utf-8")
    score = struct.unpack("<f", _last(fields, 2, bytes(4)))[0]
    return Piece(text, score, _last(fields, 3, _NORMAL))


def _last(fields: dict[int, list[Any]], number: int, default: Any) -> Any:
    return fields[number][-1] if number in fields else default


def _fields(data: bytes) -> dict[int, list[Any]]:
    fields: dict[int, list[Any]] = {}
    for number, value in _wire(data):
        fields.setdefault(number, []).append(value)
    return fields


def _wire(data: bytes) -> Iterator[tuple[int, Any]]:
    """Protobuf's wire format: field number with an integer, or with the bytes of a fixed-width or length-delimited value."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        wire_type = key & 7
        if wire_type == 0:
            value, position = _varint(data, position)
        else:
            if wire_type == 2:
                length, position = _varint(data, position)
            else:
                length = {1: 8, 5: 4}.get(wire_type, -1)
            if length < 0 or position + length > len(data):
                raise ValueError(f"broken field at byte {position}")
            value, position = data[position : position + length], position + length
        yield key >> 3, value


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7
