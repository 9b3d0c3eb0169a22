"""transformers' processor and tokenizer, as Baidu's snippets use them, over `ernie45.processor`.

Knows nothing about the model.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature

from ernie45.config.errors import RequestError
from ernie45.config.inputs import ModelInput
from ernie45.processor import Processor
from ernie45.processor.chat import placed_media
from ernie45.processor.loader import load_all
from ernie45.processor.media import Video, load_image, load_video
from ernie45.processor.messages import MediaKind, MediaSource
from ernie45.processor.source import is_url

Messages = Sequence[Mapping[str, Any]]
Ids = Sequence[int] | np.ndarray | torch.Tensor


class ErnieTokenizer:
    """Text to token ids and back. Control tokens in a text are themselves, as everywhere in transformers."""

    def __init__(self, processor: Processor) -> None:
        self.processor = processor

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, trust_remote_code: bool | None = None, use_fast: bool = True) -> Any:
        """Of a model folder. trust_remote_code and use_fast: there is no remote code and no slow one, so both hold already."""
        return cls(Processor.from_dir(folder))

    def __len__(self) -> int:
        return len(self.processor.tokenizer)

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        padding: bool = False,
        return_tensors: str | None = None,
        add_special_tokens: bool = False,
    ) -> BatchFeature:
        """input_ids and attention_mask of texts. ERNIE puts nothing around a text, so add_special_tokens changes nothing."""
        inputs = [self.processor.encode_text(each, allow_special=True) for each in _as_list(text)]
        features = _features(inputs, self.processor, padding=padding, return_tensors=return_tensors)
        return BatchFeature({name: features[name] for name in ("input_ids", "attention_mask")})

    @property
    def eos_token_id(self) -> int:
        return self.processor.tokens.eos

    @property
    def pad_token_id(self) -> int:
        return self.processor.tokens.pad

    @property
    def bos_token_id(self) -> int:
        return self.processor.tokens.bos

    @property
    def chat_template(self) -> str:
        return self.processor.template.source

    def encode(self, text: str) -> list[int]:
        """Token ids of one text."""
        return self.processor.tokenizer.encode(text, allow_special=True)

    def decode(self, token_ids: Ids, skip_special_tokens: bool = False) -> str:
        """The text of one sequence of ids."""
        ids = token_ids.tolist() if isinstance(token_ids, (np.ndarray, torch.Tensor)) else token_ids
        return self.processor.tokenizer.decode(ids, skip_special_tokens)

    def batch_decode(self, sequences: Iterable[Ids], skip_special_tokens: bool = False) -> list[str]:
        """The text of each."""
        return [self.decode(each, skip_special_tokens) for each in sequences]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """Id of a token by its name, or of each; None for an unknown one."""
        find = self.processor.tokenizer.id_of
        return find(tokens) if isinstance(tokens, str) else [find(token) for token in tokens]

    def apply_chat_template(
        self,
        conversation: Messages | Sequence[Messages],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        enable_thinking: bool = True,
        **form: Any,
    ) -> Any:
        """The rendered conversation, or of several a list; with tokenize their features, pictures loaded.

        form: padding, return_tensors, and return_dict (False: the ids alone).
        """
        unknown = sorted(set(form) - {"padding", "return_tensors", "return_dict"})
        if unknown:
            raise RequestError(f"apply_chat_template has no option {unknown[0]!r}; leave it out")
        several = bool(conversation) and not isinstance(conversation[0], Mapping)
        conversations: Any = conversation if several else [conversation]
        each: list[Messages] = [_with_paths(messages) for messages in conversations]
        options = {"enable_thinking": enable_thinking, "add_generation_prompt": add_generation_prompt, "tools": tools}
        if not tokenize:
            texts = [self.processor.prompt_text(messages, **options) for messages in each]
            return texts if several else texts[0]
        return_dict = form.pop("return_dict", True)
        inputs = [self.processor.encode_chat(messages, **options) for messages in each]
        features = _features(inputs, self.processor, **{"padding": False, "return_tensors": None, **form})
        if return_dict:
            return features
        return features["input_ids"] if several or form.get("return_tensors") else features["input_ids"][0]


class ErnieProcessor:
    """Text, images and videos to what `ErnieForCausalLM` takes."""

    def __init__(self, processor: Processor) -> None:
        self.processor = processor
        self.tokenizer = ErnieTokenizer(processor)
        self.apply_chat_template = self.tokenizer.apply_chat_template
        self.decode = self.tokenizer.decode
        self.batch_decode = self.tokenizer.batch_decode

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, trust_remote_code: bool | None = None, use_fast: bool = True) -> Any:
        """Of a model folder. trust_remote_code and use_fast: as in `ErnieTokenizer.from_pretrained`."""
        return cls(Processor.from_dir(folder))

    def eval(self) -> "ErnieProcessor":
        """Nothing to switch: there is no random processing here. Returns itself."""
        return self

    def process_vision_info(self, messages: Messages | Sequence[Messages]) -> tuple[list[Any] | None, list[Any] | None]:
        """The images (PIL) and the videos (sampled frames) of conversations, in order; None where there are none."""
        several = bool(messages) and not isinstance(messages[0], Mapping)
        conversations: Any = messages if several else [messages]
        media = [each for messages in conversations for each in self.processor.media_of(_with_paths(messages))]
        images = [load_image(each.source, self.processor.limits, each.field) for each in media if each.kind == "image"]
        videos = [self._video(each) for each in media if each.kind == "video"]
        return images or None, videos or None

    def __call__(
        self,
        text: str | Sequence[str],
        images: Any = None,
        videos: Any = None,
        *,
        padding: bool = False,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """input_ids, attention_mask, token_type_ids, position_ids [B, S, 3], and with pictures images (uint8 patches) and
        grid_thw. Pictures belong to the placeholders of the texts in order, images and videos each for themselves."""
        texts = _as_list(text)
        waiting: dict[MediaKind, list[MediaSource]] = {"image": _sources("image", images), "video": _sources("video", videos)}
        inputs = []
        for index, each in enumerate(texts):
            kinds = placed_media(each)
            for kind in ("image", "video"):
                if len(waiting[kind]) < kinds.count(kind):
                    rule = f"text[{index}] has {kinds.count(kind)} places for {kind}s, and {len(waiting[kind])} are left"
                    raise RequestError(f"{rule}; give one for each, in order")
            sources = [waiting[kind].pop(0) for kind in kinds]
            loaded = load_all(sources, self.processor.config, self.processor.limits)
            inputs.append(self.processor.encode_rendered(each, loaded))
        for kind, left in waiting.items():
            if left:
                raise RequestError(f"{kind}s has {len(left)} more than the texts have places for; give one for each, in order")
        return _features(inputs, self.processor, padding=padding, return_tensors=return_tensors)

    def _video(self, media: MediaSource) -> Any:
        if isinstance(media.source, Video):
            return media.source
        return load_video(media.source, self.processor.config, self.processor.limits, media.field)


def _features(inputs: Sequence[ModelInput], processor: Processor, *, padding: bool, return_tensors: str | None) -> BatchFeature:
    """Rows of one length, padded in front, so that what is generated follows each prompt."""
    if return_tensors not in (None, "pt"):
        raise RequestError(f"return_tensors ({return_tensors!r}) must be 'pt' or None; change it")
    if not padding and return_tensors and len({len(item) for item in inputs}) > 1:
        raise RequestError("text has rows of several lengths, which make no tensor; set padding=True")
    width = max(map(len, inputs)) if padding or return_tensors else 0
    rows: dict[str, list[Any]] = {"input_ids": [], "attention_mask": [], "token_type_ids": [], "position_ids": []}
    for item in inputs:
        gap = max(width - len(item), 0)
        rows["input_ids"].append(np.pad(item.token_ids, (gap, 0), constant_values=processor.tokens.pad))
        rows["attention_mask"].append(np.pad(np.ones(len(item), np.int64), (gap, 0)))
        rows["token_type_ids"].append(np.pad(item.is_vision.astype(np.int64), (gap, 0)))
        rows["position_ids"].append(np.pad(item.positions, ((gap, 0), (0, 0))))
    media = [item for item in inputs if item.media]
    data: dict[str, Any] = {
        name: torch.from_numpy(np.stack(values)) if return_tensors else [value.tolist() for value in values]
        for name, values in rows.items()
    }
    if media:
        patches = np.concatenate([item.patches for item in media])
        grids = np.array([medium.grid for item in media for medium in item.media], dtype=np.int64)
        data |= {"images": torch.from_numpy(patches), "grid_thw": torch.from_numpy(grids)} if return_tensors else {}
        data |= {} if return_tensors else {"images": patches, "grid_thw": grids.tolist()}
    return BatchFeature(data)


def _as_list(text: str | Sequence[str]) -> list[str]:
    texts = [text] if isinstance(text, str) else list(text)
    if not texts or not all(isinstance(each, str) for each in texts):
        raise RequestError(f"text must be a text or a list of at least one, is {type(text).__name__}")
    return texts


def _sources(kind: MediaKind, given: Any) -> list[MediaSource]:
    """One picture or a list of them. A text is an address or, as this runs for its own user, a path."""
    if given is None:
        return []
    items = list(given) if isinstance(given, (list, tuple)) else [given]
    return [MediaSource(kind, _source(item), f"{kind}s[{index}]") for index, item in enumerate(items)]


def _source(item: Any) -> Any:
    if isinstance(item, np.ndarray):
        return Image.fromarray(item)
    return Path(item).expanduser() if isinstance(item, str) and not is_url(item) else item


def _with_paths(messages: Messages) -> list[dict[str, Any]]:
    """The messages with paths as `pathlib.Path`: elsewhere a text is never a path, as it may come from a stranger."""
    return [{**message, "content": _content(message.get("content"))} for message in messages]


def _content(content: Any) -> Any:
    return content if content is None or isinstance(content, str) else [_part(part) for part in content]


def _part(part: Any) -> Any:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in ("image_url", "video_url"):
        value = part.get(kind)
        url = value.get("url") if isinstance(value, Mapping) else value
        if url is not None and not (isinstance(url, str) and is_url(url)):
            return {"type": kind.removesuffix("_url"), kind.removesuffix("_url"): _source(url)}
    elif kind in ("image", "video") and part.get(kind) is not None:
        return {**part, kind: _source(part[kind])}
    return part
