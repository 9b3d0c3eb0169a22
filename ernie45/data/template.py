"""Records as sequences with labels, through the model's own processor: chat template, masks, both answer forms.

Knows nothing about files, batches or losses; needs no torch, so that worker processes are light.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ernie45.config.data import DataConfig
from ernie45.config.errors import ConfigError, DataError, MediaError, RequestError
from ernie45.config.inputs import ModelInput
from ernie45.data.document import document_input
from ernie45.data.labelled import IGNORED, Labelled
from ernie45.data.media import check_addresses, load_media, measure_media
from ernie45.data.records import Document, Messages, Prompt, Record
from ernie45.processor import Processor
from ernie45.processor.media_cache import LoadedMedia
from ernie45.processor.messages import MediaSource, read_messages
from ernie45.processor.template import ChatTemplate
from ernie45.processor.tokenizer import Tokenizer

_Load = Callable[..., list[LoadedMedia]]
# Stand-ins for an answer, to find where it begins; no token spans them and a text before them. Their first bytes differ, as
# they may be tokens of their own.
_STAND_INS = ("\U0001f4cd", "\u262f", "\u0416")


class Size(NamedTuple):
    """Of one sequence: tokens, patches of its pictures, places with a label."""

    tokens: int
    patches: int
    labels: int


class Turn(NamedTuple):
    """An answer inside a sequence: its first token and its end of turn, both carry loss."""

    start: int
    end: int


class RecordEncoder:
    """Encodes records for one model folder's processor. Can be pickled, for worker processes.

    Of a sequence of thinking mode the thoughts' opening belongs to the prompt, of one without also the empty thoughts: what
    stands there when the model is asked. Thoughts of earlier turns are dropped, as the template drops them. The model learns to
    end with </s> where its context has the end of turn, as in ERNIE's own training.
    """

    def __init__(self, processor: Processor, config: DataConfig) -> None:
        self.processor, self.config = processor, config
        named = processor.template.named_tokens
        self._template = processor.template if config.template == "model" else ChatTemplate(named_tokens=named)

    def __reduce__(self) -> Any:
        processor, template = self.processor, self.processor.template
        parts = (processor.tokenizer.data, processor.tokens, processor.config, (template.source, template.named_tokens))
        return _rebuild, (*parts, (processor.limits, processor.accepts_media), self.config)

    def encode(self, record: Record | Document) -> Labelled:
        """Ids, positions, patches and labels. DataError, with the record's place, if a picture is missing or broken, the
        sequence is longer than the context, nothing carries loss, or the template refuses the conversation."""
        return self._encode(record, load_media)

    def measure(self, record: Record | Document) -> Size:
        """The size of what `encode` gives, from the headers of its pictures."""
        made = self._encode(record, measure_media)
        return Size(len(made.inputs), len(made.inputs.patches), made.num_labels)

    def prompt_input(self, prompt: Prompt, thinking: bool) -> ModelInput:
        """The prompt up to the place where the model goes on, in one of the two answer forms. DataError as for `encode`."""
        try:
            media = self._media(prompt.messages, load_media)
            inputs = self._chat(prompt, prompt.messages, media, thinking, prompt=True)
        except (RequestError, MediaError) as error:
            raise DataError(f"{prompt.origin}: {error}") from error
        self._check_length(len(inputs), prompt.origin)
        return inputs

    def document_ids(self, document: Document) -> np.ndarray:
        """int64: a text without pictures as ids, of any length: begin of sentence, the text, </s>."""
        return document_input(self.processor, document, ()).token_ids

    def is_thinking(self, record: Record) -> bool:
        """Which answer form a record has."""
        if record.thinking is not None:
            return record.thinking
        if self.config.thinking != "auto":
            return self.config.thinking == "on"
        return bool(read_messages(record.messages).messages[-1].get("reasoning_content"))

    def _encode(self, record: Record | Document, load: _Load) -> Labelled:
        try:
            made = self._document(record, load) if isinstance(record, Document) else self._conversation(record, load)
        except (RequestError, MediaError) as error:
            raise DataError(f"{record.origin}: {error}") from error
        self._check_length(len(made.inputs), record.origin)
        return made

    def _check_length(self, num_tokens: int, origin: str) -> None:
        if num_tokens > self.config.max_tokens:
            raise DataError(
                f"{origin} has {num_tokens} tokens, more than the context of {self.config.max_tokens}; shorten it or raise "
                "data.context and data.token_budget"
            )

    def _media(self, messages: Messages, load: _Load) -> list[LoadedMedia]:
        sources = self.processor.media_of(messages)
        check_addresses(sources, self.config.allow_remote)
        return load(sources, self.processor.config, self.processor.limits) if self.processor.accepts_media else []

    def _chat(
        self, record: Record | Prompt, messages: Messages, media: Sequence[LoadedMedia], thinking: bool, prompt: bool
    ) -> ModelInput:
        return self.processor.encode_chat(
            messages,
            enable_thinking=thinking,
            add_generation_prompt=prompt,
            tools=record.tools or None,
            media=media if self.processor.accepts_media else None,
            template=self._template,
        )

    def _conversation(self, record: Record, load: _Load) -> Labelled:
        thinking = self.is_thinking(record)
        messages = record.messages if thinking else _without_thoughts(record.messages)
        if messages[-1]["role"] != "assistant":
            raise DataError(f"{record.origin} ends with a message of role {messages[-1]['role']}; add the assistant's answer")
        media = self._media(messages, load)
        inputs = self._chat(record, messages, media, thinking, prompt=False)
        finder = _TurnFinder(self, record, messages, media, inputs, thinking)
        return Labelled(inputs, self._labels(inputs, finder, record), record.source)

    def _labels(self, inputs: ModelInput, finder: "_TurnFinder", record: Record) -> np.ndarray:
        ids = inputs.token_ids
        labels_S = np.full(len(ids), IGNORED, dtype=np.int64)
        answers = [place for place, message in enumerate(finder.messages) if message["role"] == "assistant"]
        marked = record.trained or (True,) * len(answers)
        assert len(marked) == len(answers), (record.origin, marked)
        if self.config.loss_on == "all":
            labels_S[:-1] = ids[1:]
            labels_S[finder.find(answers[-1]).end - 1] = self.processor.tokens.eos
            for place in (place for place, trained in zip(answers, marked, strict=True) if not trained):
                turn = finder.find(place)
                labels_S[turn.start - 1 : turn.end] = IGNORED
        else:
            chosen = answers if self.config.loss_on == "turns" or record.trained is not None else answers[-1:]
            for place in (place for place, trained in zip(answers, marked, strict=True) if trained and place in chosen):
                turn = finder.find(place)
                labels_S[turn.start - 1 : turn.end] = ids[turn.start : turn.end + 1]
                labels_S[turn.end - 1] = self.processor.tokens.eos
        labels_S[:-1][inputs.is_vision[1:]] = IGNORED
        if not (labels_S != IGNORED).any():
            raise DataError(f"{record.origin} has no answer that carries loss; mark one, or remove the record")
        return labels_S

    def _document(self, record: Document, load: _Load) -> Labelled:
        message = {"role": "user", "content": list(record.parts)}
        media = self._media((message,), load)
        sources: list[MediaSource] = self.processor.media_of((message,))
        if sources and not self.processor.accepts_media:
            raise RequestError(f"{sources[0].field} is given, but this model reads text only; leave it out")
        inputs = document_input(self.processor, record, media)
        labels_S = np.append(inputs.token_ids[1:], IGNORED)
        labels_S[:-1][inputs.is_vision[1:]] = IGNORED
        return Labelled(inputs, labels_S, record.source)


class _TurnFinder:
    """Where the answers of one conversation are in its sequence, for any template."""

    def __init__(
        self,
        encoder: RecordEncoder,
        record: Record,
        messages: Messages,
        media: Sequence[LoadedMedia],
        inputs: ModelInput,
        thinking: bool,
    ) -> None:
        self.messages = messages
        self._encoder, self._record, self._media = encoder, record, media
        self._ids, self._thinking = inputs.token_ids, thinking
        self._last_user = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=-1)

    def find(self, place: int) -> Turn:
        """The answer that is this message."""
        start = self._asked(place) if place > self._last_user else self._in_history(place)
        ends = np.flatnonzero(self._ids[start:] == self._encoder.processor.tokens.end_of_turn)
        if not len(ends):
            raise ConfigError(f"{_TEMPLATE} must close an answer with <|end_of_sentence|>; {_BUILT_IN}")
        return Turn(start, start + int(ends[0]))

    def _asked(self, place: int) -> int:
        """Behind the last user message the sequence goes on from the prompt, as when the model is asked."""
        before = self.messages[:place]
        thinking = self._thinking
        if place < len(self.messages) - 1:
            thinking = bool(read_messages(self.messages[place : place + 1]).messages[0].get("reasoning_content"))
        media = self._media[: len(self._encoder.processor.media_of(before))]
        prompt = self._encoder._chat(self._record, before, media, thinking, prompt=True).token_ids
        start = _common_length(self._ids, prompt)
        if start < len(prompt) and not self._continues(before, thinking):
            raise ConfigError(f"{_TEMPLATE} must write a finished answer as its generation prompt begins it; {_BUILT_IN}")
        return start

    def _continues(self, before: Messages, thinking: bool) -> bool:
        """Whether the text goes on from the prompt, where the tokens do not: some token spans the border."""
        if self._encoder.config.template == "built-in":
            return True
        text_of, tools = self._encoder.processor.prompt_text, self._record.tools or None
        return text_of(self.messages, thinking, False, tools).startswith(text_of(before, thinking, True, tools))

    def _in_history(self, place: int) -> int:
        """Earlier answers stand without thoughts, so no prompt leads to them: look where the text changes with the answer."""
        content = self.messages[place].get("content") or ""
        text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
        first = text[:1].encode("utf-8", "surrogatepass")[:1]
        return max(self._changed_at(place, other) for other in _STAND_INS if other.encode()[:1] != first)

    def _changed_at(self, place: int, text: str) -> int:
        changed = ({**self.messages[place], "content": text}, *self.messages[place + 1 :])
        messages = (*self.messages[:place], *changed)
        encoded = self._encoder._chat(self._record, messages, self._media, self._thinking, prompt=False)
        return _common_length(self._ids, encoded.token_ids)


_TEMPLATE = "the model's chat template"
_BUILT_IN = "train with data.template=built-in"


def _common_length(one: np.ndarray, other: np.ndarray) -> int:
    """How many leading entries are equal."""
    length = min(len(one), len(other))
    differs = one[:length] != other[:length]
    return int(differs.argmax()) if differs.any() else length


def _without_thoughts(messages: Messages) -> Messages:
    """The same with the last answer said at once."""
    last = messages[-1]
    content = read_messages([last]).messages[0]["content"]
    plain: dict[str, Any] = {key: value for key, value in last.items() if key != "reasoning_content"}
    return (*messages[:-1], {**plain, "content": content})


def _rebuild(data: Mapping[str, Any], tokens: Any, images: Any, template: Any, media: Any, config: DataConfig) -> RecordEncoder:
    processor = Processor(
        Tokenizer(dict(data)),
        tokens=tokens,
        config=images,
        template=ChatTemplate(*template),
        limits=media[0],
        accepts_media=media[1],
    )
    return RecordEncoder(processor, config)
