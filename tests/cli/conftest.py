"""A scripted engine, so that the commands can be tested word by word.

Knows nothing about real models.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from ernie45.commands.conversation import Conversation, Settings
from ernie45.config.inputs import ModelInput
from ernie45.config.model import SpecialTokens
from ernie45.config.sampling import SamplingParams
from ernie45.engine.request import Completion, Event
from ernie45.processor import Processor
from ernie45.processor.tokenizer import Tokenizer

CONTROL = (
    "<unk> <s> </s> <|begin_of_sentence|> <|end_of_sentence|> <|IMAGE_PLACEHOLDER|> <|IMAGE_START|> <|IMAGE_END|> "
    "<|VIDEO_START|> <|VIDEO_END|> <think> </think>"
).split()
TOKENS = SpecialTokens(
    pad=0, bos=1, eos=2, end_of_turn=4, image_patch=5, image_start=6, image_end=7, video_start=8, video_end=9
)


@dataclass
class ScriptedLLM:
    """Answers every request with `script`, one token a step; remembers what it was asked."""

    processor: Processor
    script: str = "3 and 4</think>7"
    asked: list[tuple[ModelInput, SamplingParams]] = field(default_factory=list)

    def stream(self, inputs: ModelInput, params: SamplingParams) -> Iterator[Event]:
        self.asked.append((inputs, params))
        ids = [int(token) for token in self.processor.encode_text(self.script, allow_special=True).token_ids]
        for token_id in ids:
            yield Event("r", (token_id,), None, None, len(inputs), 0)
        yield Event("r", (), "stop", TOKENS.eos, len(inputs), 0)

    def generate(self, inputs: Sequence[ModelInput], params: SamplingParams) -> list[Completion]:
        completions = []
        for item in inputs:
            token_ids = tuple(token_id for event in self.stream(item, params) for token_id in event.token_ids)
            completions.append(
                Completion(
                    token_ids=token_ids,
                    finish_reason="stop",
                    stop_token_id=TOKENS.eos,
                    num_prompt_tokens=len(item),
                    num_cached_tokens=0,
                )
            )
        return completions


@pytest.fixture(scope="session")
def processor() -> Processor:
    """Bytes as tokens, after ERNIE's control tokens."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=len(CONTROL) + 256, special_tokens=CONTROL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([], trainer)
    import json

    return Processor(Tokenizer(json.loads(tokenizer.to_str())), tokens=TOKENS)


@pytest.fixture
def llm(processor: Processor) -> ScriptedLLM:
    return ScriptedLLM(processor)


@pytest.fixture
def conversation(llm: ScriptedLLM, processor: Processor, monkeypatch: pytest.MonkeyPatch) -> Conversation:
    """A conversation with the scripted engine; `Conversation.load` gives the same one, with the settings asked for."""
    conversation = Conversation(llm, processor, Settings())  # type: ignore[arg-type]

    def load(_model: str, settings: Settings, _engine: object = None) -> Conversation:
        conversation.settings = settings
        return conversation

    monkeypatch.setattr(Conversation, "load", staticmethod(load))
    return conversation
