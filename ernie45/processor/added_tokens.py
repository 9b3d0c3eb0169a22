"""ERNIE's added tokens: the table of the released tokenizer, and what a model folder's own files add.

Knows nothing about encoding text.
"""

import json
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ernie45.config.errors import CheckpointError

SENTENCEPIECE_SIZE = 100295
IMAGE_PLACEHOLDER = "<|IMAGE_PLACEHOLDER|>"
VIDEO_PLACEHOLDER = "<|VIDEO_PLACEHOLDER|>"
# What other programs call the control tokens of the released tokenizer.
NAMED_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<unk>",
    "cls_token": "<|begin_of_sentence|>",
    "sep_token": "<|end_of_sentence|>",
}
IMAGE_START, IMAGE_END = "<|IMAGE_START|>", "<|IMAGE_END|>"
VIDEO_START, VIDEO_END = "<|VIDEO_START|>", "<|VIDEO_END|>"


@dataclass(frozen=True)
class AddedToken:
    """One entry of `added_tokens`. special: hidden from decoded text. lstrip, rstrip: swallows white space beside it."""

    id: int
    content: str
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False

    @property
    def is_control(self) -> bool:
        """Whether it steers the model, so that text must not produce it. The others (digits, runs of spaces) are text."""
        return self.special or (self.content.startswith("<") and self.content.endswith(">"))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "AddedToken":
        """Read an entry of `tokenizer.json` or `added_tokens_decoder`. CheckpointError if it asks for what we do not do."""
        if data.get("single_word"):
            raise CheckpointError(
                f"added token {data['content']!r} has single_word=true, which is not supported; ERNIE's tokens have it false"
            )
        flags = {flag: bool(data.get(flag, False)) for flag in ("lstrip", "rstrip")}
        return cls(id=int(data["id"]), content=data["content"], special=bool(data.get("special", True)), **flags)

    def to_json(self) -> dict[str, Any]:
        """An entry for `added_tokens` of a `tokenizer.json`."""
        flags = {"single_word": False, "lstrip": self.lstrip, "rstrip": self.rstrip, "normalized": False}
        return {"id": self.id, "content": self.content, **flags, "special": self.special}


def ernie_added_tokens(first_id: int = SENTENCEPIECE_SIZE) -> list[AddedToken]:
    """The tokens that the released ERNIE-4.5-VL tokenizer adds after its SentencePiece vocabulary, in order of id.

    first_id: size of the SentencePiece vocabulary. With 100295 the placeholder is 100295, the four media markers are
    101304..101307 and the native video placeholder is 103367. The names inside the unused image block (up to 102342) and
    the audio block (up to 103366) were never published; they are numbered here, as nothing depends on them.
    """
    names = [IMAGE_PLACEHOLDER, "<|AUDIO_PLACEHOLDER|>", *(f"<|LOC_{place}|>" for place in range(1001))]
    names += ["<|LOC_BEGIN|>", "<|LOC_END|>", "<|LOC_SEP|>", "<|CROP_COL_SEP|>", "<|CROP_ROW_SEP|>", "<|IMAGE_SEP|>"]
    names += [IMAGE_START, IMAGE_END, VIDEO_START, VIDEO_END, "<|ASR_START|>", "<|ASR_END|>"]
    num_unused = 102342 - SENTENCEPIECE_SIZE + 1 - len(names)
    names += [f"<|IMAGE_UNUSE_{number}|>" for number in range(num_unused)]
    num_audio = 103366 - SENTENCEPIECE_SIZE + 1 - len(names)
    names += [f"<|AUDIO_UNUSE_{number}|>" for number in range(num_audio)]
    names.append(VIDEO_PLACEHOLDER)
    return [AddedToken(first_id + rank, name) for rank, name in enumerate(names)]


def added_tokens_of_folder(folder: Path) -> list[AddedToken]:
    """What `added_tokens.json` and `tokenizer_config.json` add; the second also says which are special. In order of id."""
    tokens: dict[str, AddedToken] = {}
    for content, index in _read_json(folder / "added_tokens.json").items():
        tokens[content] = AddedToken(int(index), content)
    for index, entry in (_read_json(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}).items():
        token = AddedToken.from_json({**entry, "id": index})
        tokens[token.content] = token
    return sorted(tokens.values(), key=lambda token: token.id)


def tokenizer_config_to_json(named: dict[str, str], existing: Container[str]) -> dict[str, Any]:
    """The content of a `tokenizer_config.json`, for programs that load a tokenizer through transformers.

    existing: the tokenizer's tokens. Others are not named: transformers would add them under ids the model does not have.
    """
    media = {
        "image_token": IMAGE_PLACEHOLDER,
        "image_start_token": IMAGE_START,
        "image_end_token": IMAGE_END,
        "video_token": VIDEO_PLACEHOLDER,
        "video_start_token": VIDEO_START,
        "video_end_token": VIDEO_END,
    }
    named = {name: token for name, token in named.items() if token in existing}
    extra = {name: token for name, token in media.items() if token in existing}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **named}
    return config | ({"extra_special_tokens": extra} if extra else {})


def named_special_tokens(tokenizer_config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The pairs (bos_token, "<s>"), ... of a `tokenizer_config.json`, in either of the two published spellings."""
    for key, value in tokenizer_config.items():
        if key.endswith("_token") and value:
            content = value.get("content") if isinstance(value, dict) else value
            if isinstance(content, str):
                yield key, content


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path.name} ({path}) is not JSON: {error}; fetch the file again") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path.name} ({path}) must hold an object, has {type(data).__name__}; fetch the file again")
    return data
