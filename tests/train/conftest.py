"""A model of a few thousand parameters with every part, and batches for it."""

import pytest
import torch

from ernie45.config.model import ModelConfig, VisionConfig
from ernie45.data.packing import LanguageBatch
from ernie45.data.tiny.batches import LanguageBatches, LanguageData
from ernie45.data.tiny.digits import training_digits
from ernie45.data.tiny.model import tiny_processor
from ernie45.data.tiny.vocabulary import VOCAB_SIZE, tiny_special_tokens
from ernie45.model.multimodal import ErnieModel
from ernie45.processor import Processor
from tests import small_model


@pytest.fixture(scope="session")
def processor() -> Processor:
    return tiny_processor()


@pytest.fixture
def model() -> ErnieModel:
    model = ErnieModel(small_config())
    model.init_weights(torch.Generator().manual_seed(0))
    return model


def small_config() -> ModelConfig:
    return small_model.small_config(
        hidden_size=16,
        num_layers=3,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        mrope_section=(1, 1, 2),
        intermediate_size=16,
        shared_ffn_size=8,
        expert_pools=small_model.pools(text=8, vision=8),
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=131072,
        vision=VisionConfig(depth=1, hidden_size=16, num_heads=2, intermediate_size=16),
        tokens=tiny_special_tokens(),
    )


@pytest.fixture
def picture_batch(processor: Processor) -> LanguageBatch:
    return batches_of(processor, {"read": 1.0})(0, 0)


@pytest.fixture
def text_batch(processor: Processor) -> LanguageBatch:
    return batches_of(processor, {"arithmetic": 1.0})(0, 0)


def batches_of(processor: Processor, weights: dict[str, float], num_shards: int = 1) -> LanguageBatches:
    data = LanguageData(
        name="test", seed=0, weights=weights, thinking_share=0.5, whole_text=False, token_budget=300, num_shards=num_shards
    )
    return LanguageBatches(data, training_digits("fit"), processor)
