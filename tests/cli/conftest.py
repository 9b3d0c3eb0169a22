"""A scripted engine, so that the commands can be tested word by word, and a small random model in a folder.

Knows nothing about trained models.
"""

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import tokenizers

from ernie45.checkpoint import save_model
from ernie45.commands.conversation import Conversation, Settings
from ernie45.config.engine import EngineConfig
from ernie45.config.inputs import ModelInput
from ernie45.config.model import SpecialTokens, VisionConfig
from ernie45.config.processor import ProcessorConfig
from ernie45.config.sampling import SamplingParams
from ernie45.engine.request import Event, Request
from ernie45.model.multimodal import ErnieModel
from ernie45.offline import LLM
from ernie45.processor import Processor
from ernie45.processor.tokenizer import Tokenizer
from tests.small_model import small_config

CONTROL = (
    "<unk> <s> </s> <|begin_of_sentence|> <|end_of_sentence|> <|IMAGE_PLACEHOLDER|> <|IMAGE_START|> <|IMAGE_END|> "
    "<|VIDEO_START|> <|VIDEO_END|> <think> </think>"
).split()
TOKENS = SpecialTokens(
    pad=0, bos=1, eos=2, end_of_turn=4, image_patch=5, image_start=6, image_end=7, video_start=8, video_end=9
)


class ScriptedEngine:
    """Answers every request with the script of its `LLM`, one token a step."""

    def __init__(self, llm: "ScriptedLLM") -> None:
        self.llm = llm
        self.config = EngineConfig(max_num_seqs=2)
        self.running: dict[str, tuple[int, Iterator[int]]] = {}

    def submit(self, request: Request) -> None:
        self.llm.asked.append((request.inputs, request.params))
        ids = self.llm.processor.encode_text(self.llm.script, allow_special=True).token_ids
        self.running[request.request_id] = len(request.inputs), iter(ids.tolist())

    def abort(self, request_id: str) -> bool:
        return self.running.pop(request_id, None) is not None

    def step(self) -> list[Event]:
        events = []
        for request_id, (num_prompt_tokens, ids) in list(self.running.items()):
            token_id = next(ids, None)
            if token_id is None:
                self.abort(request_id)
                events.append(Event(request_id, (), "stop", TOKENS.eos, num_prompt_tokens, 0))
            else:
                events.append(Event(request_id, (token_id,), None, None, num_prompt_tokens, 0))
        return events


class ScriptedLLM(LLM):
    """Answers with `script`; remembers what it was asked."""

    def __init__(self, processor: Processor) -> None:
        self.processor = processor
        self.script = "3 and 4</think>7"
        self.asked: list[tuple[ModelInput, SamplingParams]] = []
        self.on_error = "raise"
        self.engine = ScriptedEngine(self)  # type: ignore[assignment]
        self._ids = count()


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
def conversation(llm: ScriptedLLM, monkeypatch: pytest.MonkeyPatch) -> Conversation:
    """A conversation with the scripted engine; `Conversation.load` gives the same one, with the settings asked for."""
    conversation = Conversation(llm, Settings())

    def load(_model: str, settings: Settings, _engine: object = None) -> Conversation:
        conversation.settings = settings
        return conversation

    monkeypatch.setattr(Conversation, "load", staticmethod(load))
    return conversation


@pytest.fixture(scope="session")
def model_folder(processor: Processor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with every part, and the processor above: loads and answers, with nonsense. Do not change it."""
    config = small_config(
        head_dim=8,
        mrope_section=(1, 1, 2),
        vocab_size=len(CONTROL) + 256,
        max_position_embeddings=256,
        vision=VisionConfig(depth=1, hidden_size=32, num_heads=2, intermediate_size=64),
        tokens=TOKENS,
    )
    folder = tmp_path_factory.mktemp("model") / "random"
    save_model(ErnieModel(config), folder)
    processor.save(folder)
    return folder
