"""A scripted engine, so that the commands can be tested word by word, and a small random model in a folder.

Knows nothing about trained models.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import tokenizers

from ernie45.checkpoint import save_model
from ernie45.commands.conversation import Conversation, Settings
from ernie45.config.inputs import ModelInput
from ernie45.config.model import ExpertPoolConfig, ModelConfig, SpecialTokens, VisionConfig
from ernie45.config.processor import ProcessorConfig
from ernie45.config.sampling import SamplingParams
from ernie45.engine.request import Completion, Event
from ernie45.model.multimodal import ErnieModel
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
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=len(CONTROL) + 256, special_tokens=CONTROL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([], trainer)
    small = ProcessorConfig(image_min_pixels=28 * 28, image_max_pixels=8 * 28 * 28)
    return Processor(Tokenizer(json.loads(tokenizer.to_str())), tokens=TOKENS, config=small)


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


@pytest.fixture(scope="session")
def model_folder(processor: Processor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with every part, and the processor above: loads and answers, with nonsense. Do not change it."""
    config = ModelConfig(
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        mrope_section=(1, 1, 2),
        intermediate_size=48,
        vocab_size=len(CONTROL) + 256,
        expert_pools=(
            ExpertPoolConfig(modality="text", num_experts=4, ffn_size=16, num_active=2),
            ExpertPoolConfig(modality="vision", num_experts=4, ffn_size=8, num_active=2),
        ),
        shared_ffn_size=32,
        max_position_embeddings=256,
        vision=VisionConfig(depth=1, hidden_size=32, num_heads=2, intermediate_size=64),
        tokens=TOKENS,
    )
    folder = tmp_path_factory.mktemp("model") / "random"
    save_model(ErnieModel(config), folder)
    processor.save(folder)
    return folder
