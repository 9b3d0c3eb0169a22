"""The processor: conversations and texts in, frozen model inputs out.

Knows nothing about torch or how the model runs.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ernie45.config.errors import CheckpointError, RequestError
from ernie45.config.inputs import MediaItem, ModelInput
from ernie45.config.model import ModelConfig, SpecialTokens
from ernie45.config.model_json import config_from_json
from ernie45.config.processor import ProcessorConfig, processor_config_from_json, processor_config_to_json
from ernie45.processor.added_tokens import (
    IMAGE_END,
    IMAGE_PLACEHOLDER,
    IMAGE_START,
    VIDEO_END,
    VIDEO_START,
    named_special_tokens,
    tokenizer_config_to_json,
)
from ernie45.processor.chat import Guard, split_media
from ernie45.processor.loader import load_all
from ernie45.processor.media_cache import LoadedMedia, MediaCache
from ernie45.processor.messages import Conversation, MediaSource, read_messages
from ernie45.processor.positions import MediaSpan, num_media_tokens, rope_positions
from ernie45.processor.source import MediaLimits
from ernie45.processor.template import BUILT_IN_TEMPLATE, ChatTemplate
from ernie45.processor.tokenizer import Tokenizer


class Processor:
    """What a model folder says about its inputs: tokenizer, chat template, picture sizes, special token ids."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        tokens: SpecialTokens,
        config: ProcessorConfig | None = None,
        template: ChatTemplate | None = None,
        limits: MediaLimits | None = None,
        accepts_media: bool = True,
    ) -> None:
        """tokens: ids of the model's config; that of <|end_of_sentence|> is taken from the tokenizer, as the released configs
        may lack it. accepts_media: whether the model can see; a tokenizer without a placeholder makes it False as well."""
        self.tokenizer = tokenizer
        end_of_turn = tokenizer.id_of("<|end_of_sentence|>")
        self.tokens = tokens if end_of_turn is None else replace(tokens, end_of_turn=end_of_turn)
        self.config = config or ProcessorConfig()
        self.template = template or ChatTemplate()
        self.limits = limits or MediaLimits()
        self.cache: MediaCache | None = None  # none unless set: most uses see a picture once
        self.accepts_media = accepts_media and IMAGE_PLACEHOLDER in tokenizer
        self._no_patches = np.empty((0, 3 * self.config.patch_size**2), dtype=np.uint8)
        if self.accepts_media:
            self._check_ids()

    @classmethod
    def from_dir(
        cls, folder: str | Path, *, tokens: SpecialTokens | None = None, limits: MediaLimits | None = None
    ) -> "Processor":
        """Read a model folder. CheckpointError or ConfigError if a file is missing, damaged or contradicts another.

        tokens: ids the model depends on; from `config.json` when not given. limits: of the media that users send.
        """
        folder = Path(folder)
        tokenizer_config = _read_json(folder / "tokenizer_config.json")
        image_config = _read_processor_config(folder)
        accepts_media = True
        if tokens is None:
            model = _read_model_config(folder)
            tokens, vision = model.tokens, model.vision
            accepts_media = vision is not None
            if vision and (vision.patch_size, vision.spatial_merge_size) != (image_config.patch_size, image_config.merge_size):
                raise CheckpointError(
                    f"patch_size and merge_size ({image_config.patch_size}, {image_config.merge_size}) in "
                    f"preprocessor_config.json must be those of config.json ({vision.patch_size}, {vision.spatial_merge_size})"
                )
        return cls(
            Tokenizer.from_dir(folder),
            tokens=tokens,
            config=image_config,
            template=_read_template(folder, tokenizer_config),
            limits=limits,
            accepts_media=accepts_media,
        )

    def save(self, folder: str | Path) -> None:
        """Write what `from_dir` reads beside config.json: tokenizer, preprocessor and chat template."""
        folder = Path(folder)
        self.tokenizer.save(folder)
        contents = {
            "preprocessor_config.json": processor_config_to_json(self.config),
            "tokenizer_config.json": tokenizer_config_to_json(self.template.named_tokens, self.tokenizer),
        }
        for name, content in contents.items():
            (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / "chat_template.jinja").write_text(self.template.source, encoding="utf-8")

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The two ids that end an answer: the model emits </s>; <|end_of_sentence|> separates turns in its context."""
        return (self.tokens.eos, self.tokens.end_of_turn)

    @property
    def think_start_id(self) -> int | None:
        """Id of <think>; None if it is not one token here."""
        return self.tokenizer.id_of("<think>")

    @property
    def think_end_id(self) -> int | None:
        """Id of </think>; None if it is not one token here."""
        return self.tokenizer.id_of("</think>")

    def prompt_text(
        self,
        messages: Sequence[Mapping[str, Any]],
        enable_thinking: bool = True,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The rendered conversation, media as one placeholder each. For people to read: only `encode_chat` keeps text and
        control tokens apart."""
        _, rendered, guard = self._render(messages, enable_thinking, add_generation_prompt, tools, self.template)
        return guard.clean(rendered)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        enable_thinking: bool = True,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        media: Sequence[LoadedMedia] | None = None,
        template: ChatTemplate | None = None,
    ) -> ModelInput:
        """A conversation in OpenAI's form as a model input. template: in place of the model's own.

        Parts: {"type": "text", "text"}, {"type": "image_url", "image_url": {"url"}}, {"type": "video_url", ...}, and for use
        from Python {"type": "image", "image": PIL image, path or bytes}, {"type": "video", "video": path, bytes or Video}.
        A part may have a "uuid", with which the picture is found again in `cache` when it comes without its bytes.
        Control tokens written in messages stay text. RequestError for a conversation or image token that cannot be, MediaError
        for a picture that cannot be used. media: the conversation's images and videos in order, where `loader.MediaLoader` has
        loaded them; else they are loaded here.
        """
        conversation, rendered, guard = self._render(
            messages, enable_thinking, add_generation_prompt, tools, template or self.template
        )
        loaded = load_all(conversation.media, self.config, self.limits, self.cache) if media is None else media
        assert [item.kind for item in loaded] == [item.kind for item in conversation.media], "media of another conversation"
        return self._assemble(rendered, loaded, lambda text: self._encode_guarded(text, guard))

    def encode_rendered(self, text: str, media: Sequence[LoadedMedia] = ()) -> ModelInput:
        """What `prompt_text` gives, or the same written by hand: control tokens in it are themselves, media as placeholders.

        Where the text of strangers is in it, use `encode_chat`. CheckpointError if media and placeholders differ.
        """
        return self._assemble(text, media, lambda piece: self.tokenizer.encode(piece, allow_special=True))

    def _assemble(self, rendered: str, media: Sequence[LoadedMedia], encode: Callable[[str], list[int]]) -> ModelInput:
        """Token ids of a rendered conversation, each place of an image or video filled with its placeholders."""
        ids: list[int] = []
        items: list[MediaItem] = []
        for piece in split_media(rendered, [item.kind for item in media]):
            if piece.media is None:
                ids += encode(piece.text)
                continue
            found = media[len(items)]
            start, end = self._markers(piece.media)
            length = num_media_tokens(found.grid, self.config.merge_size)
            offset = len(ids) + 1
            items.append(
                MediaItem(kind=piece.media, grid=found.grid, offset=offset, length=length, content_hash=found.content_hash)
            )
            ids += [start, *[self.tokens.image_patch] * length, end]
        return self._model_input(ids, items, [item.patches_PC for item in media])

    def media_of(self, messages: Sequence[Mapping[str, Any]]) -> list[MediaSource]:
        """The images and videos of a conversation, not loaded. RequestError for a conversation that cannot be."""
        return read_messages(messages).media

    def encode_text(self, text: str, allow_special: bool = False) -> ModelInput:
        """Text alone, as it is: no template, nothing before or after it."""
        return self._model_input(self.tokenizer.encode(text, allow_special), [], [])

    def encode_ids(self, token_ids: Sequence[int], field: str = "prompt") -> ModelInput:
        """Token ids as they are. RequestError for those of pictures, which need pixels. field: for the message."""
        inputs = self._model_input(list(token_ids), [], [])
        if inputs.is_vision.any():
            index = int(inputs.is_vision.argmax())
            raise RequestError(
                f"{field}[{index}] ({token_ids[index]}) stands for a picture and needs its pixels; send messages with a part "
                "of type image_url or video_url"
            )
        return inputs

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        enable_thinking: bool,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        template: ChatTemplate,
    ) -> tuple[Conversation, str, Guard]:
        conversation = read_messages(messages)
        if conversation.media and not self.accepts_media:
            raise RequestError(f"{conversation.media[0].field} is given, but this model reads text only; leave it out")
        values = {"messages": conversation.messages, "tools": list(tools) if tools else None, "arguments": template.arguments}
        guard = Guard(values, self.tokenizer.first_special_characters)
        rendered = template.render(
            **guard.mark(values), add_generation_prompt=add_generation_prompt, enable_thinking=enable_thinking
        )
        return conversation, rendered, guard

    def _encode_guarded(self, text: str, guard: Guard) -> list[int]:
        ids: list[int] = []
        for index, piece in enumerate(self.tokenizer.split_special(text)):
            if index % 2:
                ids.append(self.tokenizer.control_ids[piece])
            else:
                ids += self.tokenizer.encode(guard.clean(piece))
        return ids

    def _markers(self, kind: str) -> tuple[int, int]:
        tokens = self.tokens
        return (tokens.image_start, tokens.image_end) if kind == "image" else (tokens.video_start, tokens.video_end)

    def _model_input(self, ids: list[int], items: list[MediaItem], patches: list[np.ndarray]) -> ModelInput:
        token_ids = np.array(ids, dtype=np.int64)
        spans = [MediaSpan(item.offset, item.grid) for item in items]
        positions = rope_positions(len(ids), spans, self.config.merge_size)
        return ModelInput(
            token_ids=token_ids,
            is_vision=np.isin(token_ids, self.tokens.vision_ids),
            positions=positions.positions_SX,
            patches=patches[0] if len(patches) == 1 else np.concatenate([self._no_patches, *patches]),
            media=tuple(items),
            next_position=positions.next_position,
        )

    def _check_ids(self) -> None:
        """The tokenizer and the model's config must mean the same ids."""
        names = {"image_patch": IMAGE_PLACEHOLDER, "image_start": IMAGE_START, "image_end": IMAGE_END}
        names |= {"video_start": VIDEO_START, "video_end": VIDEO_END}
        for name, content in names.items():
            found, expected = self.tokenizer.id_of(content), getattr(self.tokens, name)
            if found is not None and found != expected:
                raise CheckpointError(
                    f"token {content!r} has id {found} in the tokenizer but {expected} in config.json ({name}); "
                    "the two files belong to different models"
                )


def _read_template(folder: Path, tokenizer_config: dict[str, Any]) -> ChatTemplate:
    """chat_template.jinja, else the older chat_template.json, else the tokenizer config's entry, else the built-in one."""
    path = folder / "chat_template.jinja"
    older = _read_json(folder / "chat_template.json").get("chat_template") or tokenizer_config.get("chat_template")
    source = path.read_text(encoding="utf-8") if path.is_file() else older
    if isinstance(source, list):  # named templates; "default" is the one for chats
        source = next((entry["template"] for entry in source if entry.get("name") == "default"), None)
    return ChatTemplate(source or BUILT_IN_TEMPLATE, dict(named_special_tokens(tokenizer_config)) or None)


def _read_processor_config(folder: Path) -> ProcessorConfig:
    """preprocessor_config.json, or transformers' native files: one more for videos, or both inside processor_config.json."""
    both = _read_json(folder / "processor_config.json")
    image = _read_json(folder / "preprocessor_config.json") or both.get("image_processor") or {}
    video = _read_json(folder / "video_preprocessor_config.json") or both.get("video_processor") or {}
    return processor_config_from_json(image, video)


def _read_model_config(folder: Path) -> ModelConfig:
    data = _read_json(folder / "config.json")
    if not data:
        raise CheckpointError(f"model folder ({folder}) has no config.json; name a folder with a model")
    return config_from_json(data)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path.name} ({path}) is not JSON: {error}; fetch the file again") from error
